"""Every kind of data set gives the same pictures, in a fixed order, and says clearly what is wrong with it."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sf_llava.data import CorruptImageError, open_images, open_labelled
from sf_llava.data.encoded import read_encoded
from sf_llava.data.paths import expand_braces
from sf_llava.data.subset import Subset

CLASSES = ["cat", "dog"]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [png(seed) for seed in range(6)]  # three cats, three dogs


@pytest.fixture(autouse=True)
def caches_in_tmp(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")


def write_folder(root: Path) -> str:
    for index, data in enumerate(PICTURES):
        path = root / CLASSES[index // 3] / "deep" / f"{index}.{['png', 'PNG', 'Jpg'][index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return f"folder:{root}"


def write_parquet(path: Path, pictures=PICTURES, binary: bool = False) -> str:
    images = pictures if binary else [{"bytes": data, "path": None} for data in pictures]
    columns = {"label": [index // 3 for index in range(len(pictures))], "image": images}
    features = datasets.Features(
        label=datasets.ClassLabel(names=CLASSES), image=datasets.Value("binary") if binary else datasets.Image()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=features.arrow_schema), path, row_group_size=2, use_dictionary=False)
    return f"parquet:{path}"


def write_shards(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"part-{shard:03}.tar", "w") as tar:
            for index in range(3 * shard, 3 * shard + 3):
                for extension, data in (("cls", str(index // 3).encode()), ("png", PICTURES[index]), ("json", b"{}")):
                    member = tarfile.TarInfo(f"./sample{index}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (root / "classnames.txt").write_text("cat\ndog\n")
    return f"webdataset:{root}/part-{{000..001}}.tar"


def write_all(root: Path) -> dict[str, str]:
    write_parquet(root / "hub" / "data" / "validation-00000-of-00001.parquet")
    return {
        "folder": write_folder(root / "folder"),
        "parquet": write_parquet(root / "parquet" / "odd [name]" / "one.parquet"),
        "binary": write_parquet(root / "binary" / "one.parquet", binary=True),
        "webdataset": write_shards(root / "shards"),
        "hub": f"hub:{root / 'hub'}:validation",
    }


@pytest.mark.parametrize("kind", ["folder", "parquet", "binary", "webdataset", "hub"])
def test_every_source_gives_the_same_pictures_and_classes(tmp_path, kind):
    name = write_all(tmp_path)[kind]
    expected = [np.asarray(Image.open(io.BytesIO(data))) for data in PICTURES]
    for source in (open_images(name), open_labelled(name), pickle.loads(pickle.dumps(open_images(name)))):
        assert len(source) == 6
        for index in (5, 0, 3, 1, 4, 2):
            image = source.load(index)
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), expected[index])
        assert len({source.describe(index) for index in range(6)}) == 6
    labelled = open_labelled(name)
    assert labelled.labels == [0, 0, 0, 1, 1, 1]
    assert labelled.class_names == CLASSES


@pytest.mark.parametrize("name", ["mini", "mini:diagrams", "mini:both"])
def test_the_drawn_world_is_a_source_like_any_other(name):
    source, labelled = open_images(name), open_labelled(name)
    first, second = source.load(0), pickle.loads(pickle.dumps(source)).load(0)
    assert first.size == (64, 64)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert len(labelled.labels) == len(labelled)
    assert set(labelled.labels) == set(range(len(labelled.class_names)))
    assert not np.array_equal(np.asarray(labelled.load(0)), np.asarray(first))


def test_a_bare_path_is_recognised_by_what_it_holds(tmp_path):
    write_all(tmp_path)
    for path in ("folder", "binary", "binary/one.parquet", "shards", "shards/part-000.tar"):
        assert len(open_images(str(tmp_path / path))) == (3 if path.endswith("tar") else 6)


def test_bootstrapping_never_reads_labels(tmp_path):
    name = write_parquet(tmp_path / "one.parquet")
    path = tmp_path / "one.parquet"
    data = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata
    for group in range(metadata.num_row_groups):  # destroy the label column on disc
        chunk = metadata.row_group(group).column(0)
        assert chunk.path_in_schema == "label"
        start = chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(bytes(data))
    assert len(open_images(name)) == 6
    assert open_images(name).dataset.column_names == ["image"]
    with pytest.raises(ValueError, match="cannot be read"):
        open_labelled(name)


def test_unlabelled_shards_and_folders_open(tmp_path):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "one.png").write_bytes(PICTURES[0])
    assert len(open_images(f"folder:{tmp_path / 'loose'}")) == 1
    with pytest.raises(ValueError, match="one folder a class"):
        open_labelled(f"folder:{tmp_path / 'loose'}")
    with tarfile.open(tmp_path / "loose.tar", "w") as tar:
        tar.add(tmp_path / "loose" / "one.png", "one.png")
    assert len(open_images(f"webdataset:{tmp_path / 'loose.tar'}")) == 1
    with pytest.raises(ValueError, match=r"one\.png has no class"):
        open_labelled(f"webdataset:{tmp_path / 'loose.tar'}")


def test_folders_are_sorted_follow_links_and_leave_out_hidden_files(tmp_path):
    write_folder(tmp_path / "pool")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "pool" / "dog")
    (root / "loop").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "broken.png").symlink_to(root / "nowhere.png")
    (root / ".hidden.png").write_bytes(PICTURES[0])
    (root / "notes.txt").write_text("not a picture")
    (root / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(PICTURES[0])
    source = open_images(str(root))
    names = [source.describe(index) for index in range(len(source))]
    linked = ["linked/deep/3.png", "linked/deep/4.PNG", "linked/deep/5.Jpg"]
    assert names == ["broken.png", "caf\ufffd.png", *linked, "self.png"]
    assert source.load(1).size == (12, 9)
    for index in (0, 5):
        with pytest.raises(CorruptImageError, match=names[index]):
            source.load(index)


def test_shard_index_is_built_once_and_renewed_when_a_shard_changes(tmp_path, monkeypatch):
    name = write_shards(tmp_path)
    open_images(name)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_: pytest.fail("the index was not cached"))
        assert len(open_images(name)) == 6
    with tarfile.open(tmp_path / "part-001.tar", "w") as tar:
        tar.add(tmp_path / "classnames.txt", "names.txt")
    assert len(open_images(name)) == 3


def test_shards_written_by_webdataset_itself_open(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/train-%04d.tar", maxcount=4, verbose=0) as writer:
        for index, data in enumerate(PICTURES):
            writer.write({"__key__": f"deep/{index:03}", "png": data, "cls": index // 3, "depth.png": PICTURES[0]})
    labelled = open_labelled(f"webdataset:{tmp_path}/train-{{0000..0001}}.tar")
    assert labelled.labels == [0, 0, 0, 1, 1, 1]
    assert labelled.class_names == ["0", "1"]  # it has no classnames.txt
    for index, data in enumerate(PICTURES):
        np.testing.assert_array_equal(np.asarray(labelled.load(index)), np.asarray(Image.open(io.BytesIO(data))))


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_images(write_shards(tmp_path / "shards"))) == 6


def test_corrupt_cells_of_tables_and_shards_are_named(tmp_path):
    source = open_images(write_parquet(tmp_path / "one.parquet", [PICTURES[0], b"", None, PICTURES[1][:60]]))
    assert source.load(0).size == (12, 9)
    for index in (1, 2, 3):
        with pytest.raises(CorruptImageError, match=rf"one\.parquet row {index}: "):
            source.load(index)


def test_pictures_beside_a_table_are_read_by_path(tmp_path):
    for index, data in enumerate(PICTURES):
        (tmp_path / "loose" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / "train" / f"{index}.png").write_bytes(data)
    source = open_images(f"hub:{tmp_path / 'loose'}")  # a local data set folder of loose files
    assert len(source) == 6
    assert source.load(0).size == (12, 9)


def test_braces_expand_as_in_a_shell():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand_braces("plain") == ["plain"]


BAD = {
    "nonsense": "unknown data set 'nonsense': expected folder:PATH, parquet:",
    "folder:": "unknown data set",
    "mini:circles": "unknown data set 'mini:circles': expected mini, mini:diagrams or mini:both",
    "folder:{tmp}/absent": "no such folder",
    "folder:{tmp}/empty": "no images below '.*empty': looked in",
    "{tmp}/empty": "no images below",
    "{tmp}/notes.txt": "only .parquet and .tar files",
    "parquet:{tmp}/absent.parquet": "no file '.*absent.parquet'",
    "parquet:{tmp}/*.none": "no files found",
    "parquet:{tmp}/columns.parquet": "no images in .*number",
    "parquet:{tmp}/rows.parquet": "no images in .*no rows",
    "parquet:{tmp}/cut.parquet": "cut.parquet is not a complete parquet file",
    "parquet:{tmp}/mixed": "mixes the splits train, validation",
    "webdataset:{tmp}/part-{{0..1}}.tar": "no file '.*part-0.tar'",
    "webdataset:{tmp}/cut.tar": "cut.tar is not a complete, uncompressed tar file",
    "webdataset:{tmp}/text.tar": "no images in .*text.tar.*1 tar file",
    "hub:{tmp}/absent": "hub:.*absent .split train. cannot be opened",
    "hub:{tmp}/mixed:test": "split test.*cannot be opened",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_names_and_empty_sets_are_one_clear_sentence(tmp_path, name):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not a picture")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "columns.parquet")
    write_parquet(tmp_path / "rows.parquet", [])
    write_parquet(tmp_path / "mixed" / "train.parquet")
    write_parquet(tmp_path / "mixed" / "validation.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "mixed" / "train.parquet").read_bytes()[:-50])
    write_shards(tmp_path / "shards")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "shards" / "part-000.tar").read_bytes()[:2000])
    with tarfile.open(tmp_path / "text.tar", "w") as tar:
        tar.add(tmp_path / "notes.txt", "notes.txt")
    with pytest.raises(ValueError, match=BAD[name]):
        open_images(name.format(tmp=tmp_path))


def test_splits_are_not_taken_for_classes(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val")
    with pytest.raises(ValueError, match="holds splits"):
        open_labelled(f"folder:{tmp_path}")


def test_a_hub_name_offline_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hub:nobody/nothing .*offline, only cached data sets open"):
        open_images("hub:nobody/nothing")


def test_labels_out_of_range_are_an_error(tmp_path):
    features = datasets.Features(label=datasets.ClassLabel(names=CLASSES), image=datasets.Image())
    rows = {"label": [-1], "image": [{"bytes": PICTURES[0], "path": None}]}
    pq.write_table(pa.table(rows, schema=features.arrow_schema), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="labels are withheld"):
        open_labelled(f"parquet:{tmp_path}")


def test_folder_of_photographs(imagenet_sample):
    labelled = open_labelled(str(imagenet_sample))
    assert len(labelled) == len(labelled.class_names) == 1000
    assert labelled.class_names[0] == "n01440764"
    assert labelled.load(0).mode == "RGB"
    assert os.sep not in labelled.class_names[0]


def test_parquet_of_cifar10(cifar10_dir):
    labelled = open_labelled(f"parquet:{cifar10_dir / 'validation.parquet'}")
    assert len(labelled) == 5000
    assert labelled.class_names[:3] == ["airplane", "automobile", "bird"]
    assert labelled.load(4999).size == (32, 32)


def test_joined_sources_are_one_behind_the_other(tmp_path):
    for name, count in (("a", 3), ("b", 2)):
        for index in range(count):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (10 * index, count, 0)).save(tmp_path / name / f"{index}.png")
    parts = [open_images(f"folder:{tmp_path / name}") for name in "ab"]
    joined = open_images(f"folder:{tmp_path / 'a'} + mini + {tmp_path / 'b'}")
    drawn = open_images("mini")
    assert len(joined) == 3 + len(drawn) + 2
    assert joined.load(2).getpixel((0, 0)) == (20, 3, 0) and joined.load(len(joined) - 1).getpixel((0, 0)) == (10, 2, 0)
    assert joined.load(3).tobytes() == drawn.load(0).tobytes() and joined.describe(3) == drawn.describe(0)
    assert read_encoded(Subset(joined, np.array([1])), 0) == parts[0].read(1) and read_encoded(joined, 3) is None
    assert pickle.loads(pickle.dumps(joined)).describe(len(joined) - 1) == parts[1].describe(1)
    with pytest.raises(IndexError, match="picture -1 of"):
        joined.load(-1)
    with pytest.raises(ValueError, match="unknown data set 'nothing'"):
        open_images("mini + nothing")
