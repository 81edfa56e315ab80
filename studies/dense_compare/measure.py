"""RaCNN, ConvNeXt, Swin and RepLKNet under the same heads: parameters, MACs, latency and memory.

    python studies/dense_compare/measure.py segment      -> segment.csv, segment.html and segment.png beside this file
    python studies/dense_compare/measure.py detect       -> detect.csv, detect.html and detect.png

Sizes are those of the papers (512 x 2048 for ADE20K, 800 x 1333 for COCO) and 512 x 512; timing is at --timed, which is
counted too.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from fullfield.measure.compare_dense import compare_dense
from fullfield.measure.compare_result import QUICK

HERE = Path(__file__).parent
NETS = ("racnn_tiny", "convnext_tiny", "swin_tiny_patch4_window7_224", "replknet_31b")
SETTINGS = {"segment": ("upernet", {"channels": 512}), "detect": ("mask_rcnn", {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SETTINGS)
    parser.add_argument("--timed", type=int, default=512, help="side of the square image that is timed, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-speed", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    head, head_arguments = SETTINGS[arguments.task]
    side = arguments.timed
    sizes = tuple(dict.fromkeys([(side, side), (512, 512), (800, 1333), (512, 2048)]))
    found = compare_dense(
        NETS,
        arguments.task,
        head=head,
        head_arguments=head_arguments,
        sizes=sizes,
        timed=not arguments.no_speed,
        budget=replace(QUICK, min_rounds=arguments.rounds, timing_seconds=1.0),
        device="cpu",
        command=f"python studies/dense_compare/measure.py {arguments.task} --timed {side} --rounds {arguments.rounds}"
        + " --no-speed" * arguments.no_speed,
    )
    for kind in ("csv", "html"):
        found.save(HERE / f"{arguments.task}.{kind}")
    found.plot(HERE / f"{arguments.task}.png")
    for item in found.not_measured:
        print(f"not measured: {item.part} of {item.model}: {item.reason}")


if __name__ == "__main__":
    main()
