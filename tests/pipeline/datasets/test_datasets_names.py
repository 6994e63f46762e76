"""Names of the layouts, made and read back."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets import layouts, msmt17
from pipeline.datasets.layout import NameFault, id_folder
from pipeline.datasets.records import short_name

ids = st.integers(0, 9999)
frames = st.integers(0, 999_999)

PARSERS: dict[str, Callable[[str], tuple[int, int]]] = {
    "market1501": layouts.MARKET_NAME,
    "dukemtmc": layouts.DUKE_NAME,
    "cuhk03-np": layouts.CUHK03_NAME,
    "msmt17": msmt17.NAME,
    "partial-reid": layouts.partial_reid_name(0),
    "partial-ilids": layouts.partial_ilids_name(1),
    "identity folders": id_folder(1),
}


@given(pid=st.one_of(ids, st.just(-1)), camera=st.integers(1, 6), scene=st.integers(1, 6), frame=frames,
       box=st.integers(0, 99), ending=st.sampled_from(["", ".jpg"]))  # fmt: skip
def test_market(pid: int, camera: int, scene: int, frame: int, box: int, ending: str) -> None:
    number = "-1" if pid == -1 else f"{pid:04}"
    assert layouts.MARKET_NAME(f"{number}_c{camera}s{scene}_{frame:06}_{box:02}{ending}") == (pid, camera)


@given(pid=ids, camera=st.integers(1, 8), frame=st.integers(0, 9_999_999))
def test_duke(pid: int, camera: int, frame: int) -> None:
    assert layouts.DUKE_NAME(f"{pid:04}_c{camera}_f{frame:07}") == (pid, camera)


@given(pid=ids, camera=st.integers(1, 2), shot=st.integers(0, 9999))
def test_cuhk03(pid: int, camera: int, shot: int) -> None:
    assert layouts.CUHK03_NAME(f"{pid:04}_c{camera}_{shot}") == (pid, camera)


@given(pid=ids, number=st.integers(0, 999), camera=st.integers(1, 15), frame=st.integers(0, 9999),
       time=st.sampled_from(["0303morning", "0113noon", "0302afternoon"]))  # fmt: skip
def test_msmt17(pid: int, number: int, camera: int, frame: int, time: str) -> None:
    assert msmt17.NAME(f"{pid:04}_{number:03}_{camera:02}_{time}_{frame:04}_0") == (pid, camera)


@given(pid=ids, shot=st.integers(0, 999), camid=st.integers(0, 1))
def test_sets_without_cameras(pid: int, shot: int, camid: int) -> None:
    assert layouts.partial_reid_name(camid)(f"{pid:03}_{shot:03}") == (pid, camid)
    assert layouts.partial_ilids_name(camid)(f"{pid:03}") == (pid, camid)
    assert id_folder(camid)(f"{pid:03}/anything {shot}") == (pid, camid)


@pytest.mark.parametrize("layout", PARSERS)
@given(stem=st.text(max_size=40))
def test_any_text_is_parsed_or_refused(layout: str, stem: str) -> None:
    try:
        pid, camid = PARSERS[layout](stem)
    except NameFault:
        return
    assert pid >= -1
    assert 0 <= camid <= 15


@pytest.mark.parametrize("layout", PARSERS)
@pytest.mark.parametrize("stem", ["", "0001", "x/0001_c1s1_000001_00", "0001_c9s1_000001_00", "0001_c9_f0000001",
                                  "٠٠٠١_c1s1_000001_00", "0001_c1s1_000001_00 (1)", "0001_000_16_0303morning_0000_0",
                                  "0001_c3_1", "a/b/c", "/1", "1/"])  # fmt: skip
def test_names_of_other_layouts_are_refused(layout: str, stem: str) -> None:
    if (layout, stem) == ("partial-ilids", "0001"):
        assert PARSERS[layout](stem) == (1, 1)
        return
    with pytest.raises(NameFault):
        PARSERS[layout](stem)


@given(text=st.text())
def test_short_names_are_safe_in_paths(text: str) -> None:
    name = short_name(text)
    assert name
    assert "/" not in name
    assert name not in (".", "..")
