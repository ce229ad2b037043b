"""Files that are corrupt, or made to hurt: bombs, disguised drivers, sidecars."""

from __future__ import annotations

import os
import re
import struct
import zlib
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling

from scenesweep.pipeline.raster.blocks import read_blocks
from tests.faults.case import Case, Make, after, beside, done, filled, holding, refused, warned
from tests.faults.pictures import (
    LONG,
    SHORT,
    SIDE,
    TILED,
    cut,
    damage,
    georeferenced,
    never_written,
    noise,
    picture,
    plain_tags,
    tiff,
    write,
    write_as,
)

NO_FORMAT = "expected one of the formats GTiff"
SECRET, URL = "@FOLDER@/secret.tif", "http://127.0.0.1:@PORT@/canary.tif"
"""Put in place when the files are made: a raster that nobody may read, and a server."""

VRT = f"""<VRTDataset rasterXSize="96" rasterYSize="96"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename>{SECRET}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
</VRTRasterBand></VRTDataset>"""
PYTHON_VRT = """<VRTDataset rasterXSize="96" rasterYSize="96">
<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">
<PixelFunctionType>run</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>
<PixelFunctionCode><![CDATA[
def run(*args, **kwargs): open("@FOLDER@/marker", "w").close()
]]></PixelFunctionCode></VRTRasterBand></VRTDataset>"""
MRF = """<MRF_META><Raster><Size x="96" y="96" c="1"/><PageSize x="96" y="96" c="1"/>
<Compression>NONE</Compression><DataFile>@FOLDER@/marker</DataFile>
<IndexFile>@FOLDER@/marker.idx</IndexFile></Raster></MRF_META>"""
CACHING_MRF = f"""<MRF_META><CachedSource><Source>{SECRET}</Source></CachedSource><Raster>
<Size x="96" y="96" c="1"/><PageSize x="96" y="96" c="1"/><DataFile>@FOLDER@/marker</DataFile>
<IndexFile>@FOLDER@/marker.idx</IndexFile></Raster></MRF_META>"""
WMS = f"""<GDAL_WMS><Service name="TMS"><ServerUrl>{URL}/${{z}}/${{x}}/${{y}}</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>96</UpperLeftY><LowerRightX>96</LowerRightX>
<LowerRightY>0</LowerRightY><SizeX>96</SizeX><SizeY>96</SizeY></DataWindow>
<BandsCount>1</BandsCount></GDAL_WMS>"""
WMTS = f"<GDAL_WMTS><GetCapabilitiesUrl>{URL}</GetCapabilitiesUrl></GDAL_WMTS>"
GTI = f"""<GDALTileIndexDataset><IndexDataset>/vsicurl/{URL}</IndexDataset>
<LocationField>location</LocationField></GDALTileIndexDataset>"""
STACIT = f"""{{"stac_version": "1.0.0", "type": "FeatureCollection", "features": [
{{"type": "Feature", "stac_version": "1.0.0", "id": "a", "properties": {{"proj:epsg": 32611}},
"assets": {{"a": {{"href": "{URL}", "proj:shape": [96, 96],
"proj:transform": [1, 0, 0, 0, -1, 0]}}}}}}]}}"""
DISGUISES: dict[str, str | bytes] = {
    "VRT that reads another file": VRT,
    "VRT with Python code": PYTHON_VRT,
    "MRF that writes a file": MRF,
    "MRF that copies another file": CACHING_MRF,
    "WMS that fetches tiles": WMS,
    "WMTS that fetches capabilities": WMTS,
    "tile index on a server": GTI,
    "STAC items on a server": STACIT,
    "ASCII grid": "ncols 2\nnrows 2\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n3 4\n",
    "SQLite, as GeoPackage": b"SQLite format 3\0" + b"\x10\0\1\1\0@  " + bytes(44) + b"GPKG",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "netCDF": b"CDF\x01" + bytes(500),
    "GRIB": b"GRIB\0\0\0\x02" + bytes(500),
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
    "ZIP archive": b"PK\3\4" + bytes(500),
    "HTML error page": "<!DOCTYPE html><title>404</title>",
    "Git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def corrupt() -> list[Case]:
    group = "corrupt"
    grey = plain_tags()
    return [
        refused(group, "empty file", NO_FORMAT, holding(b"")),
        refused(group, "text", NO_FORMAT, holding("not a raster")),
        refused(group, "zeros", NO_FORMAT, holding(bytes(4096))),
        refused(group, "random bytes", NO_FORMAT, holding(noise(1).tobytes())),
        refused(group, "half a header", "cannot be read", holding(b"II*\0\x08\0")),
        refused(group, "directory beyond the end", "cannot be read", holding(b"II*\0\xff\xff\0\0")),
        refused(group, "no width", "", holding(tiff({k: v for k, v in grey.items() if k != 256}))),
        refused(group, "width 0", "", holding(tiff(grey | {256: (LONG, [0])}))),
        refused(group, "no blocks", "", holding(tiff({k: grey[k] for k in (256, 257, 258, 262)}))),
        refused(group, "200 bits a sample", "", holding(tiff(grey | {258: (SHORT, [200])}))),
        refused(group, "unknown compression", "", holding(tiff(grey | {259: (SHORT, [4242])}))),
        refused(group, "TIFF cut in half", "", after(write, lambda p: cut(p, 0.5), **TILED)),
        refused(
            group,
            "COG cut in its last block",
            r"blocks \(the first at columns 128-256, rows 128-256\) are beyond the end",
            after(write_as, _cut_end, driver="COG", pixels=noise(side=256), blocksize=128),
        ),
        *(_garbled(codec) for codec in ("deflate", "lzw", "zstd", "jpeg", "webp", "lzma")),
        warned(
            group,
            "zeroed entry of the block index",
            r"1 of 9 blocks \(the first at columns 32-64, rows 64-96\).*not in the file",
            after(write, partial(_set_block, number=7, offset=0, length=0), **TILED),
        ),
        refused(
            group,
            "zeroed block offset",
            r"columns 32-64, rows 64-96\) are said to lie where the file's header is",
            after(write, partial(_set_block, number=7, offset=0), **TILED),
        ),
        refused(
            group,
            "block offset far beyond the end",
            r"columns 64-96, rows 32-64\) are beyond the end of the file",
            after(write, partial(_set_block, number=5, offset=4_000_000_000), **TILED),
        ),
        refused(
            group,
            "flipped bit in a file with .sha256",
            r"SHA-256",
            after(write, _sum, _flip, pixels=noise(), compress="deflate"),
        ),
        done(group, "whole file with .sha256", after(write, _sum)),
        refused(
            group, ".sha256 that holds no checksum", "sha256", after(write, beside(".sha256", "x"))
        ),
        *(
            refused(group, f"{kind} cut in half", "", _cut_half(driver, pixels), f"scene.{suffix}")
            for kind, driver, suffix, pixels in (
                ("PNG", "PNG", "png", noise()),
                ("JPEG", "JPEG", "jpg", noise()),
                ("JPEG 2000", "JP2OpenJPEG", "jp2", noise(side=256)),
            )
        ),
    ]


def bombs() -> list[Case]:
    group = "bomb"
    tile = plain_tags(36_000, 36_000, compression=8)
    for tag in (273, 278, 279):
        del tile[tag]
    tile |= {322: (LONG, [36_000]), 323: (LONG, [36_000]), 324: (LONG, [8]), 325: (LONG, [999])}
    many = plain_tags(1, 1)
    many |= {277: (SHORT, [65_535]), 284: (SHORT, [1]), 279: (LONG, [65_535])}
    huge = plain_tags(2**31 - 1, 2**31 - 1, compression=8)
    thin = plain_tags(1, 2**31 - 1) | {278: (LONG, [1])}
    zeros = zlib.compress(bytes(2**27), 9)
    strips = plain_tags(2**15, 2**15, compression=8) | {278: (LONG, [2**14])}
    strips |= {273: (LONG, [8, 8]), 279: (LONG, [len(zeros)] * 2)}
    chain = b"".join(_directory(8 + 18 * (i + 1)) for i in range(60_000))
    loop = tiff(plain_tags(), bytes(64 * 64), following=8 + 64 * 64)
    return [
        refused(group, "one tile of 1.2 GB", "take 1,236 MiB", holding(tiff(tile, bytes(999)))),
        refused(group, "65,535 bands", "claims 65,535 bands", holding(tiff(many, b"1"))),
        refused(group, "2 billion pixels a side", "", holding(tiff(huge, b"1"))),
        refused(group, "2 billion rows of a pixel", "", holding(tiff(thin, b"1"))),
        refused(group, "deflated strips of 512 MB", "take 512 MiB", holding(tiff(strips, zeros))),
        refused(group, "60,000 directories", "", holding(b"II*\0\x08\0\0\0" + chain)),
        refused(group, "a directory that follows itself", "", holding(loop)),
        refused(
            group,
            "TIFF of a million pixels a side, no block written",
            r"windows of 128 px \([\d,]+ x [\d,]+ in all\), at most 16,000,000 are allowed",
            never_written,
        ),
        warned(
            group,
            "TIFF of a hundred thousand pixels a side, no block written",
            "nothing is looked at there.*no valid pixels",
            partial(never_written, side=100_000),
            squares=0,
        ),
        refused(group, "PNG of 2 billion pixels a side", "", holding(_png(2**31 - 1))),
        refused(group, "JPEG 2000 of 4 billion pixels a side", "", _jp2_bomb, "scene.jp2"),
    ]


def disguises() -> list[Case]:
    return [
        refused("disguise", f"{name}, named .tif", NO_FORMAT, holding(content))
        for name, content in DISGUISES.items()
    ]


def sidecars() -> list[Case]:
    group = "sidecar"
    found = [
        warned(
            group,
            f"{suffix} that is {kind}",
            rf"{re.escape(suffix)} is not a readable TIFF: not used",
            after(write, beside(suffix, content)),
        )
        for suffix in (".msk", ".ovr")
        for kind, content in (("a VRT", VRT), ("an MRF", CACHING_MRF), ("a WMS", WMS))
    ]
    elsewhere = "names another file for its overviews"
    return [
        *found,
        *(
            refused(group, f"OVERVIEW_FILE {kind}", elsewhere, after(write, _overviews(target)))
            for kind, target in (
                ("of another raster", SECRET),
                ("at a URL", URL),
                ("through vsicurl", f"/vsicurl/{URL}"),
                ("through vsis3", "/vsis3/bucket/key.tif"),
            )
        ),
        done(group, ".aux.xml that names overviews", after(write, beside(".aux.xml", _AUX))),
        done(group, "mask in a .msk", after(write, _mask), squares=0),
        done(group, "overviews in an .ovr", after(write, _external_overviews)),
        refused(
            group,
            ".msk that is a pipe",
            "scene.tif.msk beside it is not a file",
            after(write, lambda p: os.mkfifo(f"{p}.msk")),
        ),
        refused(
            group,
            "world file that is a pipe",
            "scene.tfw beside it is not a file",
            after(write, lambda p: os.mkfifo(p.with_suffix(".tfw")), transform=None),
        ),
        done(group, "CRS in an .aux.xml alone", after(write, beside(".aux.xml", _AUX), crs=None)),
        refused(
            group,
            "CRS in an .aux.xml that is a bomb",
            "no coordinate reference system",
            after(write, beside(".aux.xml", _BOMB), crs=None),
        ),
        done(group, "CRS in the TIFF, transform in a .tfw", _with_world_file),
    ]


_AUX = f"""<PAMDataset><SRS>{CRS.from_epsg(32611).to_wkt()}</SRS><Metadata domain="OVERVIEWS">
<MDI key="OVERVIEW_FILE">{SECRET}</MDI></Metadata></PAMDataset>"""
_BOMB = """<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>
<PAMDataset><SRS>&b;</SRS></PAMDataset>"""


def _garbled(codec: str) -> Case:
    bands = 3 if codec == "webp" else 1
    pixels = np.repeat(noise(side=256), bands, axis=0)
    garble = partial(_garble_block, number=4)
    return refused(
        "corrupt",
        f"garbage in a block of {codec}",
        r"columns \d+-\d+, rows \d+-\d+",
        after(write, garble, compress=codec, pixels=pixels, **TILED),
    )


def _cut_half(driver: str, pixels: NDArray[np.uint8]) -> Make:
    return after(write_as, lambda path: cut(path, 0.5), driver=driver, pixels=pixels)


def _garble_block(path: Path, number: int) -> None:
    blocks = read_blocks(path)
    assert blocks is not None
    damage(path, int(blocks.offset[number]), b"\xa5" * int(blocks.length[number]))


def _cut_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _set_block(path: Path, number: int, offset: int, length: int | None = None) -> None:
    """Overwrite the place of a block in the index of a TIFF, and its length."""
    blocks = read_blocks(path)
    assert blocks is not None
    content = path.read_bytes()
    for numbers, kind, value in ((blocks.offset, "<u4", offset), (blocks.length, "<u2", length)):
        if value is not None:
            entry = np.array(value, kind)
            at = content.index(numbers.astype(kind).tobytes())
            damage(path, at + number * entry.itemsize, entry.tobytes())


def _sum(path: Path) -> None:
    digest = sha256(path.read_bytes()).hexdigest()
    Path(f"{path}.sha256").write_text(f"{digest}  {path.name}\n")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)


def _overviews(target: str) -> Make:
    """Return a step that names another file for a raster's overviews, in its metadata."""

    def step(path: Path) -> None:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=filled(target, path).decode())

    return step


def _mask(path: Path) -> None:
    """Mask the square out, in a file beside the raster."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(picture()[0] < 200)


def _external_overviews(path: Path) -> None:
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.nearest)


def _with_world_file(path: Path) -> None:
    path.write_bytes(tiff(georeferenced(plain_tags(SIDE, SIDE)), picture().tobytes()))
    path.with_suffix(".tfw").write_text("0.6\n0\n0\n-0.6\n430000.3\n3774999.7\n")


def _directory(following: int) -> bytes:
    return struct.pack("<HHHIII", 1, 256, LONG, 1, 64, following)


def _png(side: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(10_000))
    chunks = [header, data, b"IEND"]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _jp2_bomb(path: Path) -> None:
    """Claim a size of 4 billion in both places of a JPEG 2000 header."""
    write_as(path, "JP2OpenJPEG", noise(side=256))
    content = bytearray(path.read_bytes())
    box, codestream = content.index(b"ihdr") + 4, content.index(b"\xff\x4f\xff\x51") + 8
    for at in (box, box + 4, codestream, codestream + 4, codestream + 16, codestream + 20):
        content[at : at + 4] = b"\xff\xff\xff\xf0"
    path.write_bytes(content)
