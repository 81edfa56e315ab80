from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from fullfield.data import Sample, open_sample, read_image, read_sample
from fullfield.data import place as module
from fullfield.data.place import Archive, TarPlace
from fullfield.errors import DataError, ImageError
from tests.data.archive_files import encoded


def bundle(path: Path, count: int = 6) -> list[Sample]:
    """Write images one after the other into a file."""
    samples, contents = [], b""
    for number in range(count):
        data = encoded(number)
        samples.append((len(contents), len(data)))
        contents += data
    path.write_bytes(contents)
    archive = Archive.of(path)
    return [Sample(path / f"{i}.png", i, TarPlace(archive, *place)) for i, place in enumerate(samples)]


def open_files() -> int:
    """Count the open descriptors of this process."""
    listing = Path("/proc/self/fd")
    if not listing.is_dir():
        pytest.skip("needs /proc, which only Linux has")
    return len(list(listing.iterdir()))


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


def test_file_and_place_give_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(2))
    in_archive = bundle(tmp_path / "all.bin")[2]
    in_file = Sample(tmp_path / "a.png", 2)
    assert pixels(read_sample(in_archive)) == pixels(read_sample(in_file)) == pixels(read_image(tmp_path / "a.png"))
    with open_sample(in_archive) as a, open_sample(in_file) as b:
        assert a.read() == b.read() == encoded(2)


def test_min_side_reaches_the_decoder(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(encoded(0, "JPEG", (640, 800)))
    sample = Sample(path / "a.jpg", 0, TarPlace(Archive.of(path), 0, path.stat().st_size))
    assert read_sample(sample, min_side=150).size == (200, 160)


def test_sample_survives_pickling(tmp_path: Path) -> None:
    sample = bundle(tmp_path / "all.bin")[1]
    again = pickle.loads(pickle.dumps(sample))  # noqa: S301
    assert again == sample
    assert pixels(read_sample(again)) == pixels(read_sample(sample))


def test_no_more_than_the_kept_number_of_archives_is_open(tmp_path: Path) -> None:
    module._descriptor.cache_clear()
    before = open_files()
    for number in range(module.KEPT_OPEN + 20):
        read_sample(bundle(tmp_path / f"{number}.bin", 1)[0])
    assert open_files() - before == module.KEPT_OPEN
    module._descriptor.cache_clear()
    assert open_files() == before


def test_threads_that_read_more_archives_than_are_kept_get_the_right_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_descriptor", module.functools.lru_cache(2)(module._descriptor.__wrapped__))
    samples = [sample for number in range(6) for sample in bundle(tmp_path / f"{number}.bin")]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda sample: open_sample(sample).read(), samples * 5))
    assert found == [encoded(sample.label) for sample in samples] * 5


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    samples = bundle(tmp_path / "all.bin", 40)
    read_sample(samples[0])  # the descriptor is open when the processes are forked
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_read, samples * 3, chunksize=1)
    assert found == [encoded(sample.label) for sample in samples] * 3


def _read(sample: Sample) -> bytes:
    with open_sample(sample) as stream:
        return stream.read()


def test_archive_that_was_cut_off_is_an_image_error_with_the_image_s_name(tmp_path: Path) -> None:
    path = tmp_path / "all.bin"
    samples = bundle(path)
    read_sample(samples[0])
    with path.open("r+b") as file:
        file.truncate(samples[5].place.offset + 10)  # type: ignore[union-attr]
    with pytest.raises(ImageError, match=r"all\.bin/5\.png: cannot be read from its archive .*ends at byte") as caught:
        read_sample(samples[5])
    assert str(caught.value).startswith(f"{path}/5.png: ")


def test_archive_that_was_replaced_before_it_was_opened_is_refused(tmp_path: Path) -> None:
    samples = bundle(tmp_path / "all.bin")
    os.utime(tmp_path / "all.bin", ns=(1, 1))
    with pytest.raises(ImageError, match="was changed since its images were listed; start again"):
        read_sample(samples[0])


def test_archive_that_is_gone_is_an_image_error(tmp_path: Path) -> None:
    samples = bundle(tmp_path / "all.bin")
    (tmp_path / "all.bin").unlink()
    with pytest.raises(ImageError, match=r"0\.png: cannot be read from its archive .*No such file"):
        open_sample(samples[0])
    with pytest.raises(DataError, match=r"all\.bin: cannot be opened \(No such file"):
        Archive.of(tmp_path / "all.bin")


def test_empty_and_damaged_images_in_an_archive_say_so(tmp_path: Path) -> None:
    path = tmp_path / "all.bin"
    path.write_bytes(b"not an image")
    archive = Archive.of(path)
    with pytest.raises(ImageError, match=r"x\.png: is empty"):
        read_sample(Sample(path / "x.png", 0, TarPlace(archive, 3, 0)))
    with pytest.raises(ImageError, match=r"x\.png: is not a JPEG"):
        read_sample(Sample(path / "x.png", 0, TarPlace(archive, 0, 12)))


@pytest.mark.parametrize("name", ["missing.png", "folder", "null\0byte"])
def test_what_is_no_file_cannot_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match=r"cannot be opened \("):
        open_sample(Sample(tmp_path / name, 0))
