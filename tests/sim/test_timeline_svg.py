"""The picture of a timeline."""

from xml.etree import ElementTree

from vmxswitch.sim.timeline_svg import COLOURS, OTHERS, Stay, timeline_svg

SVG = "{http://www.w3.org/2000/svg}"


def picture(stays, guests):
    return ElementTree.fromstring(timeline_svg(stays, guests, "caption"))


def test_stays_lie_in_the_lanes_of_their_guests_one_after_the_other():
    stays = [Stay("a", 0, 100, "HLT", "HLT", None), Stay("b", 100, 300, "CPUID", "CPUID", 32)]
    svg = picture(stays, ["a", "b"])
    bars = {lane.get("id"): lane.find(f"{SVG}rect") for lane in svg.iter(f"{SVG}g")}
    left, right = bars["a"], bars["b"]
    assert float(right.get("x")) == float(left.get("x")) + float(left.get("width"))
    assert round(float(right.get("width")) / float(left.get("width"))) == 3
    assert float(right.get("y")) > float(left.get("y"))
    assert right.find(f"{SVG}title").text == (
        "CPUID after 300 cycles, from 100, vector 0x20 delivered")


def test_only_the_most_frequent_reasons_have_a_colour():
    stays = [Stay("a", number, 1, f"R{number // 2}", "", None) for number in range(18)]
    stays.append(Stay("a", 18, 1, "rare", "", None))
    (lane,) = picture(stays, ["a"]).iter(f"{SVG}g")
    fills = [bar.get("fill") for bar in lane.findall(f"{SVG}rect")]
    assert fills[-1] == OTHERS and fills[0:16:2] == list(COLOURS) and fills[16] == OTHERS


def test_nothing_is_a_picture_too():
    assert picture([], ["a"]).find(f"{SVG}title").text == "caption"
