"""Write the QGIS style of a layer: one colour per class, scores as labels.

QGIS finds the style in the file of the layer's name with the suffix .qml. A label is drawn only
where its box is larger than the label at the scale of the map; otherwise the label would hide the
box and its neighbours. A dense layer of small objects has no labels until a user zooms in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from scenesweep.pipeline.publish.formats.layer import PALETTE

_DOCTYPE = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_LABELS_FROM = 5_000  # map scale 1 : 5,000; QGIS places no label at smaller scales
_LABEL = 'format_number("score", 2)'
_LABEL_MM = 8.0, 5.0  # width and height on the map: four characters of 8 points with their halo
_HALO_MM = 0.6
_OUTLINE_MM = 0.4
_POLYGONS = "2"
_EXPRESSION = "3"  # QgsProperty::ExpressionBasedProperty


def write_style(classes: Sequence[str], path: Path) -> None:
    """Write a QGIS layer style (.qml) for detections of these classes.

    Detections of other classes have no symbol.
    """
    path.write_bytes(style_text(classes))


def style_text(classes: Sequence[str]) -> bytes:
    """Return the content of a QGIS layer style, in UTF-8."""
    style = Element("qgis", version="3.22.0", labelsEnabled="1")
    style.set("styleCategories", "Symbology|Labeling")
    style.append(_renderer(classes))
    style.append(_labels())
    SubElement(style, "layerGeometryType").text = _POLYGONS
    indent(style)
    return _DOCTYPE + tostring(style, encoding="utf-8") + b"\n"


def _renderer(classes: Sequence[str]) -> Element:
    renderer = Element("renderer-v2", type="categorizedSymbol", attr="class_name")
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for number, name in enumerate(classes):
        category = {"value": name, "label": name, "symbol": str(number), "render": "true"}
        SubElement(categories, "category", category, type="string")
        symbols.append(_outline(str(number), PALETTE[number % len(PALETTE)]))
    return renderer


def _outline(name: str, color: str) -> Element:
    symbol = Element("symbol", name=name, type="fill", alpha="1", clip_to_extent="1")
    fill = SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0"})
    _options(
        fill,
        style="no",
        outline_style="solid",
        outline_color=_rgba(color),
        outline_width=str(_OUTLINE_MM),
        outline_width_unit="MM",
        joinstyle="miter",
    )
    return symbol


def _labels() -> Element:
    labeling = Element("labeling", type="simple")
    settings = SubElement(labeling, "settings", calloutType="simple")
    text = SubElement(settings, "text-style", isExpression="1", fontSize="8", fontSizeUnit="Point")
    text.set("fontWeight", "50")
    text.set("fieldName", _LABEL)
    text.set("textColor", _rgba("#202020"))
    buffer = SubElement(text, "text-buffer", bufferDraw="1", bufferSizeUnits="MM")
    buffer.set("bufferSize", str(_HALO_MM))
    buffer.set("bufferColor", _rgba("#ffffff"))
    placement = SubElement(settings, "placement", placement="1", quadOffset="4")
    placement.set("polygonPlacementFlags", "2")
    placement.set("fitInPolygonOnly", "1")  # QGIS ignores the halo here, so `_fits` is needed too
    visible = SubElement(settings, "rendering", drawLabels="1", obstacle="0", scaleVisibility="1")
    visible.set("scaleMin", "1")  # QGIS names this the maximum elsewhere
    visible.set("scaleMax", str(_LABELS_FROM))
    settings.append(_shown_if(_fits()))
    return labeling


def _fits() -> str:
    """Return the QGIS expression that says whether a box is larger than its label on the map."""
    sides = zip(("width_m", "height_m"), _LABEL_MM, strict=True)
    return " AND ".join(f'"{name}" * 1000 / @map_scale >= {mm:g}' for name, mm in sides)


def _shown_if(expression: str) -> Element:
    """Return the data-defined property that shows a label where an expression is true."""
    properties = Element("dd_properties")
    collection = SubElement(properties, "Option", type="Map")
    SubElement(collection, "Option", name="name", value="", type="QString")
    named = SubElement(collection, "Option", name="properties", type="Map")
    show = SubElement(named, "Option", name="Show", type="Map")
    SubElement(show, "Option", name="active", value="true", type="bool")
    SubElement(show, "Option", name="expression", value=expression, type="QString")
    SubElement(show, "Option", name="type", value=_EXPRESSION, type="int")
    SubElement(collection, "Option", name="type", value="collection", type="QString")
    return properties


def _options(parent: Element, **values: str) -> None:
    options = SubElement(parent, "Option", type="Map")
    for name, value in values.items():
        SubElement(options, "Option", name=name, value=value, type="QString")


def _rgba(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"{red},{green},{blue},255"
