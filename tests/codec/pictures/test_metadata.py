"""All that a file says beside its pixels goes into the section and comes back in PNG, where other programs find it."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from codec.pictures.metadata import (
    KINDS,
    Metadata,
    NotCarried,
    orientation,
    png_chunks,
    same_facts,
    upright,
    with_metadata,
)
from codec.pictures.metadata_readers import bare_png, png_parts, read_metadata

XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmpNote="http://ns.adobe.com/xmp/note/"%s/></rdf:RDF>'
    b'</x:xmpmeta><?xpacket end="w"?>'
)
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x78\x00\x0cHafen, 1972.\x1c\x02\x50\x00\x05Meier"
RESOURCES = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) & 1)


def photo(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:24, 0:32]
    return Image.fromarray(np.stack([x * 6, y * 8, x + y], 2).astype(np.uint8)).convert(mode)


def file(format: str, image: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (image or photo()).save(out, format, **options)
    return out.getvalue()


def exif(**tags) -> bytes:
    """From the TIFF header on; GPS and a caption among it."""
    made = Image.Exif()
    made[0x010E], made[0x0112] = tags.get("caption", "a harbour"), tags.get("orientation", 1)
    made[34853] = {1: "N", 2: (38.0, 42.0, 0.0), 3: "W", 4: (9.0, 8.0, 0.0)}
    return made.tobytes().removeprefix(b"Exif\0\0")


def jpeg(*segments: tuple[int, bytes], **options) -> bytes:
    data = file("JPEG", **options)
    added = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:20] + added + data[20:]  # behind JFIF


def png(*chunks: tuple[bytes, bytes], image: Image.Image | None = None) -> bytes:
    data = file("PNG", image)
    added = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:33] + added + data[33:]


def given_back(data: bytes, format: str) -> Image.Image:
    """The PNG that is made of the file's metadata, opened by Pillow; it says the same."""
    metadata = upright(read_metadata(data, format))
    assert Metadata.from_bytes(metadata.to_bytes()) == metadata
    restored = with_metadata(file("PNG"), metadata)
    assert same_facts(read_metadata(restored, "PNG"), metadata)
    image = Image.open(io.BytesIO(restored))
    image.load()
    return image


def test_a_jpeg_with_everything():
    icc = bytes(range(256)) * 500  # two APP2 segments
    data = jpeg(
        (0xED, b"Photoshop 3.0\0" + RESOURCES), (0xFE, b"negative 1972-114, box 7"), (0xFE, "Übung".encode()),
        (0xFE, b"caf\xe9"), (0xE7, b"\x1aQualcomm Camera Attributes"),
        exif=b"Exif\0\0" + exif(orientation=6), icc_profile=icc, xmp=XMP % b' tiff:Orientation="6"', dpi=(300, 240),
    )  # fmt: skip
    image = given_back(data, "JPEG")
    assert image.info["icc_profile"] == icc
    assert image.getexif()[0x010E] == "a harbour" and image.getexif()[0x0112] == 1
    assert image.getexif().get_ifd(34853)[2] == (38.0, 42.0, 0.0)
    assert image.info["xmp"] == XMP % b' tiff:Orientation="1"'
    assert [round(each) for each in image.info["dpi"]] == [240, 300]  # turned with the picture
    lines = image.text["Raw profile type iptc"].split("\n")
    assert lines[1:3] == ["iptc", f"{len(RESOURCES):8}"] and bytes.fromhex("".join(lines[3:])) == RESOURCES
    comments = [body for kind, body in png_chunks(read_metadata(data, "JPEG")) if body.startswith(b"Comment")]
    assert comments[0] == b"Comment\0negative 1972-114, box 7" and comments[2] == b"Comment\0caf\xe9"
    assert "Übung".encode() in comments[1]
    assert "Raw profile type app7" in image.text


def test_long_exif_is_put_together():
    long = exif() + bytes(70_000)
    data = jpeg((0xE1, b"Exif\0\0" + long[:60_000]), (0xE1, b"Exif\0\0" + long[60_000:]))
    assert read_metadata(data, "JPEG").first("exif") == long


def extension(packet: bytes, guid: bytes, piece: int) -> list[tuple[int, bytes]]:
    head = b"http://ns.adobe.com/xmp/extension/\0" + guid
    return [
        (0xE1, head + struct.pack(">II", len(packet), at) + packet[at : at + piece])
        for at in range(0, len(packet), piece)
    ]


def test_extended_xmp_is_joined():
    guid = b"0123456789ABCDEF0123456789ABCDEF"
    main = XMP % (b' xmpNote:HasExtendedXMP="' + guid + b'"')
    rest = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"><crs:Look>'
        + b"warm " * 300 + b"</crs:Look></rdf:Description></rdf:RDF></x:xmpmeta>"
    )  # fmt: skip
    segments = extension(rest, guid, 400)
    data = jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main), *reversed(segments))
    image = given_back(data, "JPEG")
    assert b"<crs:Look>warm " in image.info["xmp"] and b"HasExtendedXMP" not in image.info["xmp"]
    depth = rest.replace(b"crs:Look", b"GDepth:Data")
    for broken in (
        jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main), *extension(depth, guid, 400)),
        jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main), *segments[1:]),
        jpeg(*segments),
    ):
        with pytest.raises(NotCarried, match="extended XMP"):
            read_metadata(broken, "JPEG")


def test_png_chunks_come_back_as_they_were():
    chunks = [
        (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *range(30000, 30008))),
        (b"tEXt", b"parameters\0a harbour, steps: 20, seed: 7"),
        (b"zTXt", b"mxfile\0\0" + zlib.compress(b"<mx/>" * 900)),
        (b"iTXt", b"Copyright\0\0\0de\0Rechte\0" + "© José 2024".encode()),
        (b"tIME", struct.pack(">H5B", 2019, 3, 4, 5, 6, 7)),
        (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)), (b"oFFs", struct.pack(">iiB", 3, -4, 0)),
    ]  # fmt: skip
    data = png(*chunks)
    assert sorted(png_chunks(read_metadata(data, "PNG"))) == sorted(chunks)
    image = given_back(data, "PNG")
    assert image.info["Copyright"] == "© José 2024" and image.info["mxfile"] == "<mx/>" * 900
    assert image.info["gamma"] == 0.45455 and "chromaticity" in image.info
    for kind, body in ((b"sRGB", b"\1"), (b"cICP", b"\x0c\x0d\0\1")):
        assert png_chunks(read_metadata(png((kind, body)), "PNG")) == [(kind, body)]


def test_exif_and_xmp_that_imagemagick_wrote_into_png():
    raw = b"Exif\0\0" + exif(orientation=8)
    text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    metadata = read_metadata(png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))), "PNG")
    assert metadata.parts == (("exif", exif(orientation=8)),) and orientation(metadata) == 8
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", (XMP % b"").decode(), zip=True)
    assert read_metadata(file("PNG", pnginfo=info), "PNG").first("xmp") == XMP % b""


def test_text_beyond_pillows_limits_and_with_a_wrong_checksum():
    large = (b"zTXt", b"log\0\0" + zlib.compress(b"line of a log\n" * 200_000))
    profile = bytes(2_000_500)
    metadata = read_metadata(png(large, (b"iCCP", b"big\0\0" + zlib.compress(profile))), "PNG")
    assert metadata.first("icc") == profile and ("png", large[0] + large[1]) in metadata.parts
    damaged = bytearray(png((b"zTXt", b"note\0\0" + zlib.compress(b"kept in spite of it"))))
    damaged[8 + 25 + 8 + len(b"note\0\0" + zlib.compress(b"kept in spite of it"))] ^= 0xFF
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(damaged))
    image = given_back(bytes(damaged), "PNG")
    assert image.info["note"] == "kept in spite of it"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bare_png(bytes(damaged))))), np.asarray(photo()))


REFUSED = {
    "thermal": (jpeg((0xE1, b"FLIR\0\1\0\0" + bytes(90))), "JPEG", "thermal"),
    "C2PA in JPEG": (jpeg((0xEB, b"JP\0\1" + bytes(60))), "JPEG", "C2PA"),
    "stereo": (jpeg((0xE3, b"_JPSJPS_" + bytes(20))), "JPEG", "stereo"),
    "C2PA in PNG": (png((b"caBX", bytes(40))), "PNG", "C2PA"),
    "Fireworks": (png((b"mkBF", bytes(40))), "PNG", "Fireworks"),
    "unsafe to copy": (png((b"abCD", bytes(4))), "PNG", "private chunk"),
    "bomb": (png((b"iCCP", b"a\0\0" + zlib.compress(bytes(17 << 20)))), "PNG", "larger than 16 MB"),
    "bad profile": (png((b"iCCP", b"a\0\0garbage")), "PNG", "damaged"),
    "too much": (png(*[(b"tEXt", b"a\0" + bytes([i]) * (6 << 20)) for i in (65, 66, 67)]), "PNG", "16 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_given_back_is_said_in_words(name):
    data, format, words = REFUSED[name]
    with pytest.raises(NotCarried, match=words):
        read_metadata(data, format)


def test_a_damaged_chunk_that_is_no_text_is_not_guessed_at():
    data = png((b"gAMA", struct.pack(">I", 45455)))
    with pytest.raises(NotCarried, match="gAMA"):
        read_metadata(data[:45] + b"\0" + data[46:], "PNG")


def test_what_only_helps_to_decode_is_left_out():
    data = jpeg((0xEE, b"Adobe\0d\0\0\0\0\1"), (0xEC, b"Ducky\0\1"), (0xE0, b"JFXX\0\x13" + bytes(30)))
    assert read_metadata(data, "JPEG") == Metadata()
    assert read_metadata(png((b"iDOT", bytes(28)), (b"sBIT", b"\5\6\5")), "PNG") == Metadata()


def test_other_formats():
    assert given_back(file("WEBP", exif=b"Exif\0\0" + exif(), icc_profile=b"p" * 40, xmp=XMP % b""), "WEBP").info["xmp"]
    assert given_back(file("GIF", comment=b"by hand"), "GIF").info["Comment"] == "by hand"
    assert round(given_back(file("BMP", dpi=(150, 150)), "BMP").info["dpi"][0]) == 150
    netpbm = b"P6\n# from the scanner\n2 1\n255\nabcdef"
    assert given_back(netpbm, "PPM").info["Comment"] == "from the scanner"
    tiff = file("TIFF", dpi=(400, 400), tiffinfo={33723: IPTC, 700: XMP % b"", 270: "a pier"}, icc_profile=b"p" * 40)
    metadata = read_metadata(tiff, "TIFF", Image.open(io.BytesIO(tiff)))
    assert IPTC in metadata.first("photoshop") and metadata.first("xmp") == XMP % b""
    assert b"a pier" in metadata.first("exif")
    assert struct.unpack(">IIB", metadata.first("density")) == (15748, 15748, 1)
    animated = file("GIF", save_all=True, append_images=[photo().rotate(90)], comment=b"two")
    assert read_metadata(animated, "GIF").first("comment") == b"two"


def test_the_picture_is_upright_and_so_is_what_is_said_of_it():
    for turn in range(1, 9):
        said = read_metadata(jpeg(exif=b"Exif\0\0" + exif(orientation=turn), dpi=(300, 100)), "JPEG")
        assert orientation(said) == turn and orientation(upright(said)) == 1
        assert upright(said).first("exif") == exif()
        wide = (3937, 11811) if turn >= 5 else (11811, 3937)
        assert struct.unpack(">IIB", upright(said).first("density")) == (*wide, 1)
    for raw in (b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", exif(orientation=9)):
        assert orientation(Metadata.of(("exif", raw))) == 1
    only_xmp = Metadata.of(("xmp", XMP % b' tiff:Orientation="6"'))
    assert orientation(only_xmp) == 1 and upright(only_xmp).first("xmp") == XMP % b' tiff:Orientation="1"'
    assert upright(Metadata()) == Metadata()


def test_nothing_is_said_where_nothing_was():
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "PPM"):  # Pillow writes a density into every BMP
        metadata = read_metadata(file(format), format)
        assert metadata == Metadata() and png_chunks(metadata) == [] and metadata.to_bytes() == b""
        assert with_metadata(file("PNG"), metadata) == file("PNG")


def test_two_metadatas_are_compared_by_what_they_say():
    a, b = (read_metadata(jpeg((0xFE, text)), "JPEG") for text in (b"one", b"two"))
    assert same_facts(a, a) and not same_facts(a, b) and not same_facts(a, Metadata())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.binary(min_size=1, max_size=300)), max_size=12))
def test_sections_come_back(parts):
    metadata = Metadata.of(*parts)
    assert Metadata.from_bytes(metadata.to_bytes()) == metadata


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_section_is_read_or_refused(data):
    try:
        assert Metadata.from_bytes(data).to_bytes() is not None
    except ValueError:
        pass


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_mangled_files_end_in_a_metadata_or_a_reason(format):
    options = {"JPEG": {"exif": exif(), "xmp": XMP % b"", "comment": b"c"}, "GIF": {"comment": b"c"}}.get(format, {})
    data = file(format, **options)
    rng = np.random.default_rng(1)
    for _ in range(300):
        bad = bytearray(data[: rng.integers(20, len(data) + 1)])
        for place in rng.integers(8, len(bad), 3):
            bad[place] = rng.integers(256)
        try:
            metadata = read_metadata(bytes(bad), format)
        except NotCarried:
            continue
        assert [kind for kind, _ in png_parts_of(with_metadata(file("PNG"), metadata))][-1] == b"IEND"


def png_parts_of(data: bytes) -> list[tuple[bytes, bytes]]:
    parts = list(png_parts(data))
    assert all(sound for _, _, sound in parts)
    return [(kind, body) for kind, body, _ in parts]
