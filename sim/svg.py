"""Pictures in SVG."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

__all__ = ["add", "document", "text_of"]


def document(width: int, height: int, title: str, style: str) -> Element:
    """A white picture; sizes in pixels."""
    svg = Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}",
        "width": str(width), "height": str(height)})
    add(svg, "title", text=title)
    add(svg, "style", text=style)
    add(svg, "rect", width=width, height=height, fill="white")
    return svg


def add(parent: Element, tag: str, text: str | None = None, **attributes) -> Element:
    """Add an element; numbers among its attributes are written short."""
    element = ElementTree.SubElement(
        parent, tag, {name: f"{value:g}" if isinstance(value, float) else str(value)
                      for name, value in attributes.items()})
    element.text = text
    return element


def text_of(svg: Element) -> str:
    """The picture as a file's content."""
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"
