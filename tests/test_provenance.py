"""The mark of generated media, read back by parsers and readers that are not ours."""

from __future__ import annotations

import struct
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image

from diag_core.pictures import write_png
from diag_core.provenance import GENERATED, generated_xmp, xmp_box
from diag_core.video_reader import read_image

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
TEXT = f"{RDF}Alt/{RDF}li"


def properties(xmp: str) -> ET.Element:
    (description,) = ET.fromstring(xmp.lstrip("\ufeff")).iter(f"{RDF}Description")
    return description


def test_the_mark_names_the_digital_source_type_and_the_tool():
    xmp = generated_xmp()
    found = properties(xmp)
    assert {child.tag: child.text for child in found} == {
        "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        ),
        "{http://ns.adobe.com/xap/1.0/}CreatorTool": "ComfyUI-DiagDistill",
    }
    assert found.get(f"{RDF}about") == ""
    assert xmp.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n')
    assert xmp.endswith('<?xpacket end="w"?>')


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<b> & \"x\" 'y' ]]>", None),
        ("äöü 漢字 🎬", None),
        ("two\nlines\tand a\rreturn", None),
        ("a\x00b\x07c\x1bd\ufffee\ud800f", "abcdef"),
    ],
)
def test_texts_come_back(text: str, kept: str | None):
    found = properties(generated_xmp(title=text, description=text, tool=text))
    for name in ("title", "description"):
        item = found.find(f"{DC}{name}/{TEXT}")
        assert item is not None and item.text == (kept or text)
        assert item.get("{http://www.w3.org/XML/1998/namespace}lang") == "x-default"
    assert found.findtext("{http://ns.adobe.com/xap/1.0/}CreatorTool") == (kept or text)


@pytest.mark.parametrize("text", [None, "", "\x00\x01"])
def test_nothing_to_say_is_left_out(text: str | None):
    assert "dc:title" not in generated_xmp(title=text, description="d")
    assert "dc:description" not in generated_xmp(title="t", description=text)


def test_the_mp4_box_is_what_the_specification_says():
    xmp = generated_xmp(title="é")
    box = xmp_box(xmp)
    size, kind = struct.unpack(">I4s", box[:8])
    assert (size, kind) == (len(box), b"uuid")
    assert str(uuid.UUID(bytes=box[8:24])).upper() == "BE7ACFCB-97A9-42E8-9C71-999491E3AFAC"
    assert box[24:].decode("utf-8") == xmp


def test_a_png_carries_the_mark_and_texts(tmp_path: Path):
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    xmp = generated_xmp(title="a red 3")
    texts = {"Title": "a réd 3", "prompt": '{"seed": 3, "漢": "\n"}'}
    write_png(tmp_path / "a.png", image, xmp=xmp, texts=texts)
    with Image.open(tmp_path / "a.png") as read:
        read.load()  # checks the chunks' sums
        assert [read.info.get(name) for name in ("XML:com.adobe.xmp", *texts)] == [xmp, *texts.values()]
    assert torch.equal(read_image(tmp_path / "a.png"), image)
    assert GENERATED.encode() in (tmp_path / "a.png").read_bytes()[:1000]  # before the pixels


@pytest.mark.parametrize("keyword", ["", "k" * 80, " title", "title ", "漢字", "a\0b", "a\nb"])
def test_keywords_that_png_has_not_are_refused(tmp_path: Path, keyword: str):
    with pytest.raises(ValueError, match="a PNG text needs a keyword"):
        write_png(tmp_path / "a.png", torch.zeros(2, 2, 3, dtype=torch.uint8), texts={keyword: "x"})
    with pytest.raises(ValueError, match="'title' holds a NUL"):
        write_png(tmp_path / "a.png", torch.zeros(2, 2, 3, dtype=torch.uint8), texts={"title": "a\0b"})
    assert list(tmp_path.iterdir()) == []
