"""Put pictures of the two demos side by side: docs/images/detect_segment.png of the README.

make demo-detect demo-segment && python studies/dense_heads/picture.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, GAP = 400, 8


def main() -> None:
    cells = sorted((ROOT / "demo-detect" / "predictions").glob("*.png"))[:2]
    nuclei = sorted((ROOT / "demo-segment" / "predictions" / "drawn").glob("*.png"))
    pictures = []
    for file in (*cells, nuclei[0], nuclei[-1]):
        picture = Image.open(file).convert("RGB")
        pictures.append(picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT)))
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + GAP * (len(pictures) - 1), HEIGHT), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    sheet.save(ROOT / "docs" / "images" / "detect_segment.png", optimize=True)


if __name__ == "__main__":
    main()
