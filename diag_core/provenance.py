"""The mark that says a file was made by a model: an XMP packet, and the MP4 box that carries it.

The mark is IPTC's digital source type `trainedAlgorithmicMedia`. Anybody can remove it: it informs; a signature
(c2pa_signing.py) proves.
Sources: IPTC Photo Metadata Standard (Digital Source Type); Adobe, XMP specification part 1 (the packet) and part 3
(where each kind of file has it).
"""

from __future__ import annotations

import re
import uuid
from xml.sax.saxutils import escape

from .mp4_boxes import make_box

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's name for media made by a trained model from, at most, a prompt and an image."""
TOOL = "ComfyUI-DiagDistill"
"""What the mark names as the program."""
PNG_KEYWORD = "XML:com.adobe.xmp"
"""The keyword of the iTXt chunk that carries XMP in a PNG file."""
_MP4_UUID = uuid.UUID("BE7ACFCB-97A9-42E8-9C71-999491E3AFAC")
_PACKET_ID = "W5M0MpCehiHzreSzNTczkc9d"  # the same in every packet: scanners look for it
# XML 1.0 has no place for these, escaped or not.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def generated_xmp(*, title: str | None = None, description: str | None = None, tool: str = TOOL) -> str:
    """The XMP packet of a file that a model made.

    Args:
        title, description: of the file, any text; control characters, which XML cannot hold, are removed. Left out when
            None or when nothing is left of them.
        tool: the program.
    """
    properties = [
        f"<Iptc4xmpExt:DigitalSourceType>{GENERATED}</Iptc4xmpExt:DigitalSourceType>",
        f"<xmp:CreatorTool>{_xml(tool)}</xmp:CreatorTool>",
    ]
    for name, text in (("title", title), ("description", description)):
        if said := _xml(text or ""):
            properties.append(f'<dc:{name}><rdf:Alt><rdf:li xml:lang="x-default">{said}</rdf:li></rdf:Alt></dc:{name}>')
    lines = "\n   ".join(properties)
    return f"""<?xpacket begin="\ufeff" id="{_PACKET_ID}"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   {lines}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def xmp_box(xmp: str) -> bytes:
    """The MP4 box that carries an XMP packet; it belongs at the top level of the file."""
    return make_box(b"uuid", _MP4_UUID.bytes + xmp.encode())


def _xml(text: str) -> str:
    # A parser turns a bare carriage return into a line feed.
    return escape(_NOT_IN_XML.sub("", text), {"\r": "&#13;"})
