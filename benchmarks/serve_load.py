"""Load `fullfield serve` from another process: batching, latency, memory and refusals.

    python benchmarks/serve_load.py                 -> benchmarks/results/serve_load.csv, serve_load_memory.csv
    python benchmarks/serve_load.py --minutes 0.2   -> a look; nothing is written

Server and clients are processes of their own on loopback; on few cores they share them, which the figures include.
The net is racnn_pico with random weights (speed does not depend on them) as ONNX, for images of --size pixels.

  one by one, batched   as many clients ask as fast as they are answered, of a server with --batch-size 1 and of one
                        with --batch-size 16, in turns; the ratio is the median over rounds
  below the limit       requests at --share of the batched rate, at even times, for --minutes: latency, errors, and the
                        memory of the server with its workers every second
  above the limit       four times as many clients as images may wait: the rest must be 429 and nothing else

A request's time begins when it was due, not when a late client sent it.
"""

import argparse
import asyncio
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

RESULT = Path(__file__).parent / "results" / "serve_load.csv"
MEMORY = Path(__file__).parent / "results" / "serve_load_memory.csv"
BATCH = 16
QUEUE = 64
WARM_S = 20.0


# --- the clients: a process of its own, started as `serve_load.py --generate JSON` ---


def request_bytes(size: int) -> list[bytes]:
    """Return a few whole requests, each with a JPEG photograph-like image of `size` pixels."""
    requests = []
    for seed in range(8):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        body = file.getvalue()
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


class Client:
    """One connection, opened again when the server closes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer = None

    async def ask(self, request: bytes) -> int:
        """Return the status, 0 for a broken connection."""
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            await self.reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            if b"connection: close" in head:
                self.close()
            return int(head[9:12])
        except (OSError, EOFError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


async def generate(port: int, size: int, seconds: float, clients: int, rate: float | None) -> dict:
    """Ask for some seconds: closed loop without a rate, else at even times; return statuses and times."""
    requests = request_bytes(size)
    statuses: Counter[int] = Counter()
    times: list[float] = []
    start = time.perf_counter()
    number = 0

    async def client() -> None:
        nonlocal number
        connection = Client(port)
        while True:
            mine, number = number, number + 1
            due = time.perf_counter() if rate is None else start + mine / rate
            if due >= start + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            status = await connection.ask(requests[mine % len(requests)])
            statuses[status] += 1
            if status == 200:
                times.append(1000 * (time.perf_counter() - due))
            elif status in (429, 503):
                await asyncio.sleep(0.05)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - start
    at = np.percentile(times, [50, 99]) if times else [float("nan")] * 2
    return {"statuses": dict(statuses), "seconds": took, "p50_ms": float(at[0]), "p99_ms": float(at[1])}


# --- the measurement ---


@contextmanager
def server(model: Path, batch: int):
    """Start `fullfield serve`; yield its process and port."""
    command = [sys.executable, "-m", "fullfield.cli.main", "serve", str(model), "--port", "0"]
    command += ["--batch-size", str(batch), "--queue-size", str(QUEUE), "--max-requests", "1024"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            for line in process.stdout:
                if "serving at " in line:
                    yield process, int(line.split("serving at ")[1].split(",")[0].rpartition(":")[2])
                    break
            else:
                log.seek(0)
                sys.exit(f"the server did not start: {log.read()[-2000:]}")
            process.terminate()
            if process.wait(60) != 0:
                sys.exit(f"the server ended with {process.returncode}")
        finally:
            process.kill()
            process.stdout.close()


def start_clients(port: int, size: int, seconds: float, clients: int, rate: float | None = None) -> subprocess.Popen:
    told = json.dumps([port, size, seconds, clients, rate])
    return subprocess.Popen([sys.executable, __file__, "--generate", told], stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen) -> dict:
    told = json.loads(process.communicate()[0])
    told["statuses"] = {int(status): count for status, count in told["statuses"].items()}
    return told


def tree_mb(process: subprocess.Popen) -> float:
    """Return the resident memory of the server and its workers, MB; shared pages count in each."""
    root = psutil.Process(process.pid)
    return sum(one.memory_info().rss for one in (root, *root.children(recursive=True))) / 1e6


def row(phase: str, batch: int, clients: int, told: dict, **more: object) -> dict[str, object]:
    statuses = told["statuses"]
    answered = statuses.get(200, 0)
    return {
        "phase": phase,
        "batch_size": batch,
        "clients": clients,
        "seconds": f"{told['seconds']:.1f}",
        "answered": answered,
        "images_per_s": f"{answered / told['seconds']:.1f}",
        "p50_ms": f"{told['p50_ms']:.1f}",
        "p99_ms": f"{told['p99_ms']:.1f}",
        "status_429": statuses.get(429, 0),
        "other": sum(count for status, count in statuses.items() if status not in (200, 429)),
        **dict.fromkeys(("ratio", "ratio_min", "ratio_max", "offered_per_s", "memory_mb", "memory_spread"), ""),
        **more,
    }


def compare_batching(model: Path, size: int, rounds: int, seconds: float, clients: int) -> list[dict[str, object]]:
    best: dict[int, list[dict]] = {1: [], BATCH: []}
    with server(model, 1) as (_, one), server(model, BATCH) as (_, many):
        for number in range(rounds + 1):
            for batch, port in ((1, one), (BATCH, many)):
                told = result_of(start_clients(port, size, seconds, clients))
                if number:  # the first round warms up
                    best[batch].append(told)
    rates = {b: [told["statuses"].get(200, 0) / told["seconds"] for told in all_of] for b, all_of in best.items()}
    ratios = [many / one for one, many in zip(rates[1], rates[BATCH], strict=True)]
    rows = []
    for batch, phase in ((1, "one by one"), (BATCH, "batched")):
        middle = sorted(zip(rates[batch], range(rounds), strict=True))[rounds // 2][1]
        of = {
            "ratio": f"{statistics.median(ratios):.2f}",
            "ratio_min": f"{min(ratios):.2f}",
            "ratio_max": f"{max(ratios):.2f}",
        }
        rows.append(row(phase, batch, clients, best[batch][middle], **(of if batch > 1 else {})))
    return rows


def hold_load(
    model: Path, size: int, rate: float, seconds: float, clients: int
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    with server(model, BATCH) as (process, port):
        asking = start_clients(port, size, seconds, clients, rate)
        memory: list[dict[str, object]] = []
        start = time.perf_counter()
        while asking.poll() is None:
            memory.append({"second": round(time.perf_counter() - start), "memory_mb": round(tree_mb(process), 2)})
            time.sleep(1)
        told = result_of(asking)
        warm = min(WARM_S, seconds / 4)
        held = [float(one["memory_mb"]) for one in memory if int(one["second"]) >= warm] or [float("nan")]
        spread = (max(held) - min(held)) / min(held)
        of = {
            "offered_per_s": f"{rate:.1f}",
            "memory_mb": f"{statistics.median(held):.1f}",
            "memory_spread": f"{spread:.4f}",
        }
        rows = [row("below the limit", BATCH, clients, told, **of)]
        told = result_of(start_clients(port, size, min(10.0, seconds), 4 * QUEUE))
        rows.append(row("above the limit", BATCH, 4 * QUEUE, told))
        told = result_of(start_clients(port, size, min(5.0, seconds), clients, rate))
        rows.append(row("below it again", BATCH, clients, told, offered_per_s=f"{rate:.1f}"))
    return rows, memory


def exported(folder: Path, size: int) -> Path:
    from fullfield.deploy.export import export

    export("racnn_pico", "onnx", folder / "racnn_pico.onnx", size=(size, size), verify=False)
    return folder / "racnn_pico.onnx"


def main() -> None:
    if sys.argv[1:2] == ["--generate"]:
        print(json.dumps(asyncio.run(generate(*json.loads(sys.argv[2])))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported file or a run, instead of racnn_pico")
    parser.add_argument("--size", type=int, default=64, help="of the images, pixels")
    parser.add_argument("--minutes", type=float, default=5.0, help="below the limit; less than 1 writes nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--share", type=float, default=0.6, help="of the batched rate, below the limit")
    arguments = parser.parse_args()
    quick = arguments.minutes < 1
    rounds, seconds = (1, 2.0) if quick else (arguments.rounds, 10.0)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or exported(Path(folder), arguments.size)
        rows = compare_batching(model, arguments.size, rounds, seconds, arguments.clients)
        rate = arguments.share * float(str(rows[1]["images_per_s"]))
        more, memory = hold_load(model, arguments.size, rate, 60 * arguments.minutes, arguments.clients)
        rows += more
    for one in rows:
        print("  ".join(f"{key} {value}" for key, value in one.items() if value != ""))
    faults = [
        *([f"batching gives {rows[1]['ratio']} times, less than 1.5"] if float(str(rows[1]["ratio"])) < 1.5 else []),
        *(f"{one['phase']}: {one['other']} errors" for one in rows if one["other"]),
        *(f"{one['phase']}: {one['status_429']} refused" for one in (rows[2], rows[4]) if one["status_429"]),
        *([] if rows[3]["status_429"] else ["above the limit: nothing was refused"]),
        *([f"memory spreads by {rows[2]['memory_spread']}"] if float(str(rows[2]["memory_spread"])) > 0.05 else []),
    ]
    print("\n".join(faults) or "all as it should be")
    if not quick:
        from environment import environment

        from fullfield.measure.tables import write_rows

        about = {"model": model.stem, "image_size": arguments.size, **environment()}
        print(f"written to {write_rows([one | about for one in rows], RESULT)}, {write_rows(memory, MEMORY)}")


if __name__ == "__main__":
    main()
