import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.datasets.records import Dataset, Record
from pipeline.datasets.registry import open_dataset
from pipeline.errors import DataError

HEADER = "path,pid,camid,split\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "crops").mkdir()
    for name in "abcdef":
        Image.new("RGB", (16, 32), (200, 30, 40)).save(tmp_path / "crops" / f"{name}.jpg")
    return tmp_path


def read(folder: Path, text: str | bytes) -> Dataset:
    file = folder / "people.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_dataset(f"csv:{file}")


def fault(folder: Path, text: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, text)
    return str(caught.value)


def test_a_table_is_read(folder: Path) -> None:
    dataset = read(folder, HEADER + "crops/b.jpg,7,1,train\ncrops/a.jpg,9,2,query\ncrops/c.jpg,0,3,gallery\n")
    assert dataset.records == (
        Record("crops/b.jpg", 7, 1, "train"),
        Record("crops/a.jpg", 9, 2, "query"),
        Record("crops/c.jpg", 0, 3, "gallery"),
    )
    assert (dataset.kind, dataset.name, dataset.root) == ("csv", "people", folder)
    assert not dataset.extra


def test_other_columns_are_kept_and_the_order_is_free(folder: Path) -> None:
    text = "visible,split,pid,path,camid\n0.4,query,9,crops/a.jpg,2\n,gallery,9,crops/b.jpg,3\n"
    dataset = read(folder, text)
    assert dataset.split("query")[0].camid == 2
    assert dataset.extra == {"crops/a.jpg": {"visible": "0.4"}, "crops/b.jpg": {"visible": ""}}


def test_an_image_in_two_roles_keeps_what_either_row_says(folder: Path) -> None:
    header = "path,pid,camid,split,visible,pose\n"
    dataset = read(folder, f"{header}crops/a.jpg,9,2,query,0.4,\ncrops/a.jpg,9,2,gallery,,walking\n")
    assert dataset.extra == {"crops/a.jpg": {"visible": "0.4", "pose": "walking"}}
    found = fault(folder, f"{header}crops/a.jpg,9,2,query,0.4,\ncrops/a.jpg,9,2,gallery,0.5,\n")
    assert "crops/a.jpg has visible '0.5' here, but '0.4' in another row" in found


@pytest.mark.parametrize("value", ["yes", "80%", "1.5", "-0.1", "nan", "0;4"])
def test_the_visible_share_is_one(folder: Path, value: str) -> None:
    found = fault(folder, f"path,pid,camid,split,visible\ncrops/a.jpg,9,2,query,{value}\n")
    assert f"visible {value!r} is not a number" in found
    assert "line 2" in found


@pytest.mark.parametrize("pid", ["1_000", "\u0661\u0662", "1e3", "99999999999999999999", "9" * 5000, "0x1f"])
def test_odd_numbers_are_faults(folder: Path, pid: str) -> None:
    found = fault(folder, f"{HEADER}crops/a.jpg,{pid},1,train\n")
    assert found.startswith((f"pid {pid[:20]!r} is not an integer", f"pid {pid[:20]} is above"))
    assert "line 2" in found


def test_what_spreadsheets_write_is_read(folder: Path) -> None:
    text = ("\ufeff" + HEADER).replace("\n", "\r\n") + ' crops/a.jpg , 7 ,1,train\r\n"crops/b.jpg",7,2,train\r\n'
    assert [record.path for record in read(folder, text).records] == ["crops/a.jpg", "crops/b.jpg"]


def test_paths_are_normalised(folder: Path) -> None:
    assert read(folder, HEADER + "./crops//a.jpg,7,1,train\n").records[0].path == "crops/a.jpg"
    assert "already (line 2)" in fault(folder, HEADER + "crops/a.jpg,7,1,train\n./crops/a.jpg,7,1,train\n")


def test_an_image_may_be_query_and_gallery(folder: Path) -> None:
    assert len(read(folder, HEADER + "crops/a.jpg,7,1,query\ncrops/a.jpg,7,1,gallery\n").records) == 2


def test_junk_rows_are_dropped_and_counted(folder: Path) -> None:
    dataset = read(folder, HEADER + "crops/a.jpg,7,1,train\ncrops/b.jpg,-1,1,gallery\n")
    assert len(dataset.records) == 1
    assert "1 junk rows (pid -1) dropped" in dataset.notes


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../crops/a.jpg,7,1,train", "leads outside"),
        ("crops/../../a.jpg,7,1,train", "leads outside"),
        ("/etc/passwd,7,1,train", "a symbolic link"),
        ("C:\\people\\a.jpg,7,1,train", "outside"),
        ("crops\\..\\a.jpg,7,1,train", "leads outside"),
        ("crops/a.jpg,seven,1,train", "pid 'seven' is not an integer"),
        ("crops/a.jpg,7.5,1,train", "pid '7.5' is not an integer"),
        ("crops/a.jpg,-2,1,train", "pid -2 is below -1"),
        ("crops/a.jpg,7,-1,train", "camid -1 is below 0"),
        ("crops/a.jpg,7,c1,train", "camid 'c1' is not an integer"),
        ("crops/a.jpg,7,1,test", "unknown split 'test'"),
        ("crops/a.jpg,7,1,trian", "did you mean 'train'?"),
        ("crops/a.jpg,0,1,query", "cannot be queries"),
        ("crops/a.jpg,7,,train", "no camid"),
        ("crops/a.jpg,7,2", "no split"),
        ("crops/a.jpg,7,1,train,more", "more values than"),
        ("crops/none.jpg,7,1,train", "crops/none.jpg (line 3)"),
        ("crops,7,1,train", "crops (line 3)"),
    ],
)
def test_a_faulty_row_is_named_with_its_line(row: str, reason: str, folder: Path) -> None:
    text = fault(folder, HEADER + "crops/b.jpg,1,1,train\n" + row + "\ncrops/c.jpg,2,1,train\n")
    assert reason in text
    assert "line 3" in text


def test_all_faults_are_counted_and_the_first_shown(folder: Path) -> None:
    text = fault(folder, HEADER + "crops/a.jpg,x,1,train\n" * 9)
    assert "9 faults in the data set" in text
    assert "line 2" in text
    assert "line 6" in text
    assert "line 7" not in text
    assert "... and 4 more" in text


def test_an_image_with_two_identities_is_refused(folder: Path) -> None:
    text = fault(folder, HEADER + "crops/a.jpg,7,1,query\ncrops/a.jpg,8,1,gallery\n")
    assert "crops/a.jpg is identity 8, camera 1 here, but identity 7, camera 1 in line 2" in text


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("path,camid,split\n", ["the column pid is missing", "path, camid, split"]),
        ("path,id,camera,split\n", ["the column pid is missing", "rename the column 'id' to 'pid'"]),
        ("Path,PersonID,CamID,Split\n", ["the column pid is missing", "rename the column 'PersonID' to 'pid'"]),
        ("crops/a.jpg,1,1,train\n", ["no header", "crops/a.jpg,1,1,train", "path,pid,camid,split"]),
        ("path;pid;camid;split\n", ["separate the columns by commas, not ';'"]),
        ("path,pid,camid,split,pid\n", ["'pid' occurs twice"]),
        ("\n", ["missing; the header has no columns"]),
        (HEADER, ["no rows"]),
    ],
)
def test_a_wrong_header_is_explained(header: str, parts: list[str], folder: Path) -> None:
    text = fault(folder, header)
    assert all(part in text for part in parts)


def test_other_encodings_and_broken_files_are_refused(folder: Path) -> None:
    assert "UTF-8" in fault(folder, (HEADER + "crops/ü.jpg,7,1,train\n").encode("latin-1"))
    assert "cannot be read" in fault(folder, HEADER + '"crops/a.jpg,7,1,train\n')
    assert "do not exist" in fault(folder, HEADER + "crops/\0a.jpg,7,1,train\n")


def test_a_missing_file_and_a_folder_are_refused(folder: Path) -> None:
    for path, problem in ((folder / "none.csv", "does not exist"), (folder / "crops", "is a folder")):
        with pytest.raises(DataError, match=problem):
            open_dataset(f"csv:{path}")


def test_identities_in_train_and_test_are_noted(folder: Path) -> None:
    dataset = read(folder, HEADER + "crops/a.jpg,7,1,train\ncrops/b.jpg,7,1,query\ncrops/c.jpg,7,2,gallery\n")
    assert any("1 identities are in train and in query or gallery: 7" in note for note in dataset.notes)


def test_a_synthetic_set_is_read_with_its_label_maps(folder: Path) -> None:
    (folder / "dataset.csv").write_text(
        "path,pid,camid,split,visible,occluder\ncrops/a.jpg,1,1,query,0.42,umbrella\ncrops/b.jpg,1,2,gallery,1,\n"
    )
    with pytest.raises(DataError, match="label maps is missing"):
        open_dataset(f"synthetic:{folder}")
    (folder / "labels").mkdir()
    dataset = open_dataset(f"synthetic:{folder}")
    assert dataset.label_maps == folder / "labels"
    assert dataset.extra["crops/a.jpg"] == {"visible": "0.42", "occluder": "umbrella"}


def test_read_table__header_in_any_case_and_numbers_of_pandas(folder: Path) -> None:
    dataset = read(folder, "Path,PID,CamID,Split\ncrops/a.jpg,7.0,1.0,Train\n")
    assert dataset.records == (Record("crops/a.jpg", 7, 1, "train"),)


def test_read_table__text_ids_get_the_line_that_numbers_them(folder: Path) -> None:
    text = fault(folder, HEADER + "crops/a.jpg,anna,1,train\n")
    assert "'anna'" in text
    assert "pandas.factorize(df['pid'])" in text


def test_read_table__without_camid_a_query_ignores_only_itself(folder: Path) -> None:
    rows = "".join(f"crops/{name}.jpg,7,{split}\n" for split in ("query", "gallery") for name in "abc")
    dataset = read(folder, "path,pid,split\n" + rows)
    queries, gallery = dataset.split("query"), dataset.split("gallery")
    for query in queries:
        same = [record.path for record in gallery if record.camid == query.camid]
        assert same == [query.path]
    assert any("no column camid" in note for note in dataset.notes)


def test_read_table__absolute_paths_inside_the_folder_and_backslashes_are_accepted(folder: Path) -> None:
    inside = folder.resolve() / "crops" / "a.jpg"
    dataset = read(folder, f"{HEADER}{inside},7,1,train\ncrops\\b.jpg,8,1,train\n")
    assert [record.path for record in dataset.records] == ["crops/a.jpg", "crops/b.jpg"]


def test_read_table__names_match_in_another_normal_form_or_suffix_case(folder: Path) -> None:
    for form in ("NFC", "NFD"):
        Image.new("RGB", (16, 32)).save(folder / "crops" / f"{unicodedata.normalize(form, 'é' + form)}.JPG", "JPEG")
    other = {"NFC": "NFD", "NFD": "NFC"}
    rows = [
        f"crops/{unicodedata.normalize(other[form], 'é' + form)}.jpg,{n},1,train" for n, form in enumerate(other, 1)
    ]
    dataset = read(folder, HEADER + "\n".join(rows))
    assert all(dataset.path_of(record).is_file() for record in dataset.records)
    assert len(dataset.records) == 2


def test_read_table__empty_rows_and_columns_of_spreadsheets_are_ignored(folder: Path) -> None:
    dataset = read(folder, "path,pid,camid,split,,\ncrops/a.jpg,7,1,train,,\n,,,,,\n\ncrops/b.jpg,8,1,train,,\n")
    assert [record.pid for record in dataset.records] == [7, 8]
    assert not any(name for extra in dataset.extra.values() for name in extra)


def test_read_table__index_column_of_pandas_is_ignored(folder: Path) -> None:
    dataset = read(folder, ",path,pid,camid,split\n0,crops/a.jpg,7,1,train\n1,crops/b.jpg,8,1,train\n")
    assert [record.path for record in dataset.records] == ["crops/a.jpg", "crops/b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "gb18030"])
def test_read_table__other_code_pages_are_named_with_a_way_out(folder: Path, encoding: str) -> None:
    name = {"utf-16": "a", "latin-1": "ü", "gb18030": "行人"}[encoding]
    text = fault(folder, (HEADER + f"crops/{name}.jpg,7,1,train\n").encode(encoding))
    assert "not UTF-8" in text
    assert "CSV UTF-8" in text


def test_read_table__semicolons_of_european_spreadsheets_are_named(folder: Path) -> None:
    assert "not ';'" in fault(folder, "path;pid;camid;split\ncrops/a.jpg;7;1;train\n")


def test_read_table__ids_with_leading_zeros_are_numbers(folder: Path) -> None:
    assert read(folder, HEADER + "crops/a.jpg,0007,01,train\n").records == (Record("crops/a.jpg", 7, 1, "train"),)


def test_read_table__missing_images_are_one_fault_with_names_that_exist(folder: Path) -> None:
    rows = "".join(f"crops/x{number}.jpg,7,1,train\n" for number in range(50))
    text = fault(folder, HEADER + "crops/a.jpg,7,1,train\n" + rows)
    assert "50 of 51 listed images do not exist: crops/x0.jpg (line 3)" in text
    assert "crops/a.jpg, crops/b.jpg" in text
    assert "crops/x9.jpg" not in text


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty (0 bytes)", "copy it again"]),
        (bytes(300), ["zero bytes", "copy it again"]),
        (b"<!DOCTYPE html><title>Sign in</title>", ["a web page", "in a browser"]),
        (f"sep=,\n{HEADER}crops/a.jpg,7,1,train\n", ["delete line 1, an instruction to Excel"]),
    ],
    ids=["empty", "zeros", "page", "sep"],
)
def test_read_table__what_is_no_table_is_named(folder: Path, content: str | bytes, parts: list[str]) -> None:
    text = fault(folder, content)
    assert all(part in text for part in parts)


def test_read_table__workbook_is_named_with_the_export(folder: Path) -> None:
    with zipfile.ZipFile(folder / "book.xlsx", "w") as book:
        book.writestr("[Content_Types].xml", "")
    with pytest.raises(DataError, match="a zip archive") as caught:
        open_dataset(f"csv:{folder / 'book.xlsx'}")
    assert "CSV UTF-8" in (caught.value.hint or "")


def test_read_table__numbers_shortened_by_spreadsheets_are_not_numbered_again(folder: Path) -> None:
    text = fault(folder, HEADER + "crops/a.jpg,1.23457E+11,1,train\ncrops/b.jpg,1.23457E+11,1,train\n")
    assert "format the column as text" in text
    assert "factorize" not in text


def test_read_table__split_test_is_explained(folder: Path) -> None:
    assert "query (searched with) or gallery (searched in)" in fault(folder, HEADER + "crops/a.jpg,1,1,test\n")
