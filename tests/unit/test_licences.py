"""Every package that the images get is on the page of licences."""

import re

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("image", ["operator", "trainer"])
def test_every_package_of_an_image_has_its_licence_listed(image: str) -> None:
    text = (ROOT / f"requirements/{image}.txt").read_text()
    wanted = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", text, re.MULTILINE))
    page = (ROOT / "docs/reference/licences.md").read_text()
    section = page.split(f"## {image}\n", 1)[1].split("\n## ")[0]
    listed = {name: version for name, version, licence in re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", section, re.M)}
    assert len(wanted) > 20
    assert {**listed, "Package": ""}.keys() - {"Package", "---"} == wanted.keys()
    assert all(listed[name] == version for name, version in wanted.items())
