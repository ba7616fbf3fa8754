"""What is wrong within COCO files is told before the first step, and by name."""

import json
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
from mmdet.datasets import CocoDataset
from mmengine.dataset import ConcatDataset
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_masks

from vision_ssm.engine import DataError, Runner
from vision_ssm.engine.checked import Notice
from vision_ssm.engine.coco_check import annotation_findings
from vision_ssm.engine.data_check import check_dataset, check_evaluator

WIDTH, HEIGHT = 48, 32
CLASSES = ("cat", "dog")


def content() -> dict:
    """Two pictures with a cat and a dog each."""
    images = [dict(id=i, file_name=f"{i}.png", width=WIDTH, height=HEIGHT) for i in (1, 2)]
    annotations = []
    for image in (1, 2):
        for category, (x, y, w, h) in ((1, (2, 2, 20, 16)), (2, (24, 8, 16, 12))):
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            one = dict(id=len(annotations) + 1, image_id=image, category_id=category, bbox=[x, y, w, h], area=w * h)
            annotations.append(dict(one, iscrowd=0, segmentation=[polygon]))
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name="cat"), dict(id=2, name="dog")])


def every(**changes):
    """Change all annotations."""

    def spoil(coco: dict) -> None:
        for one in coco["annotations"]:
            one.update(changes)

    return spoil


def first(section: str = "annotations", **changes):
    """Change the first entry of a section; None removes a key."""

    def spoil(coco: dict) -> None:
        one = coco[section][0]
        one.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del one[key]

    return spoil


def written(path, spoil=lambda coco: None):
    coco = content()
    path.write_text(json.dumps(spoil(coco) or coco))
    return path


def findings(path, spoil=lambda coco: None, **options) -> tuple[list[str], list[str]]:
    """(what makes the file unusable, what is worth a warning)."""
    options = dict(classes=CLASSES, masks=True) | options
    found = list(annotation_findings(written(path, spoil), **options))
    assert all(one.startswith(str(path)) for one in found)
    return [one for one in found if not isinstance(one, Notice)], [one for one in found if isinstance(one, Notice)]


def rle(mask: np.ndarray, compressed: bool = True) -> dict:
    """COCO's own code of a mask."""
    if compressed:
        code = coco_masks.encode(np.asfortranarray(mask))
        return dict(size=code["size"], counts=code["counts"].decode())
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return dict(size=list(mask.shape), counts=np.diff([0, *edges, flat.size]).tolist())


def test_good_files_have_nothing(tmp_path):
    for measured in (False, True):
        assert findings(tmp_path / "a.json", measured=measured) == ([], [])


WRONG = {
    "area 0": (every(area=0), "none of its 4 annotations counts: 4 have an area of 0"),
    "no area": (first(area=None), "1 annotations have no `area`, the first is annotation 1"),
    "text area": (first(area="12"), "`area` that is no finite number"),
    "relative boxes": (every(bbox=[0.1, 0.1, 0.5, 0.5]), "counts: .*boxes look relative"),
    "outside": (every(bbox=[100, 100, 9, 9]), "counts: 4 have a box outside their picture"),
    "crowds": (every(iscrowd=1), "none of its 4 annotations counts: 4 are crowds"),
    "ignored": (every(ignore=1), "counts: 4 have `ignore` set"),
    "no box": (first(bbox=None), "1 annotations have no `bbox`"),
    "box of three": (first(bbox=[1, 2, 3]), "not four finite numbers"),
    "box of NaN": (first(bbox=[1, 2, float("nan"), 3]), "not four finite numbers"),
    "no mask": (first(segmentation=None), "1 annotations have no `segmentation`, .*annotation 1"),
    "empty mask": (first(segmentation=[]), "no `segmentation`"),
    "flat polygon": (first(segmentation=[1, 2, 3, 4, 5, 6]), "neither a list of polygons"),
    "short polygons": (every(segmentation=[[1, 1, 9, 9]]), "counts: 4 have polygons"),
    "code of another size": (first(segmentation=rle(np.ones((9, 9), np.uint8))), "`size` is not the height and width"),
    "runs": (first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[5, 7])), "do not add up"),
    "negative runs": (
        first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[-1, HEIGHT * WIDTH + 1])),
        "cannot be read",
    ),
    "garbage": (first(segmentation=dict(size=[HEIGHT, WIDTH], counts="\x00~~")), "cannot be read"),
    "endless": (first(segmentation=dict(size=[HEIGHT, WIDTH], counts="o" * 10**6 + "0")), "cannot be read"),
    "unended": (first(segmentation=dict(size=[HEIGHT, WIDTH], counts="oo")), "cannot be read"),
    "class in capitals": (first("categories", name="Cat"), r"no category 'cat' \(the file has 'Cat'\)"),
    "class with a space": (first("categories", name="cat "), r"no category 'cat' \(the file has 'cat '\)"),
    "order": (lambda coco: coco["categories"].reverse(), "another order .*a 'dog' would get the label of 'cat'"),
    "two of a name": (lambda coco: coco["categories"].append(dict(id=3, name="cat")), "several categories of one name"),
    "category id": (first(category_id=9), r"1 annotations have a category_id .*\['9'\].*annotation 1"),
    "image id": (first(image_id=9), r"1 annotations have a image_id .*\['9'\]"),
    "image id as text": (every(image_id="1"), "4 annotations have a image_id .*as text in one place"),
    "no image id": (first(image_id=None), r"image_id .*\['None'\]"),
    "double annotation": (first(id=2), "1 annotations have an `id` that another one has too, .*annotation 2"),
    "double image": (
        lambda coco: coco["images"].append(coco["images"][0]),
        "1 images have an `id` that another one has",
    ),
    "double category": (
        lambda coco: coco["categories"].append(coco["categories"][0]),
        "1 categories have an `id` that another one has",
    ),
    "no id": (first(id=None), "1 annotations have no `id`"),
    "no width": (first("images", width=None), "1 images have no `width`"),
    "text height": (first("images", height="32"), "1 images have no `height`"),
    "no file name": (first("images", file_name=None), "1 images have no `file_name`"),
    "no category name": (first("categories", name=None), "1 categories have no `name`"),
    "no images": (lambda coco: coco.pop("images") and None, "no `images`"),
    "no categories": (lambda coco: coco.pop("categories") and None, "no `categories`"),
    "images by id": (lambda coco: coco.update(images={"1": {}}), "`images` is no list of objects"),
    "results": (lambda coco: coco["annotations"], "it is a list, as results are"),
    "a number": (lambda coco: 7, "no COCO annotation file: it is a int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_a_file_unusable(tmp_path, name):
    spoil, told = WRONG[name]
    wrong, _ = findings(tmp_path / "a.json", spoil)
    assert len(wrong) == 1 and re.search(told, wrong[0]), wrong


def test_what_is_no_json(tmp_path):
    path = tmp_path / "a.json"
    for text, told in (("{", "no JSON"), ("", "no JSON"), ('{"a":' * 10**5, "nested too deeply"), (b"\xff", "no JSON")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        (line,) = annotation_findings(path)
        assert told in line


NOTED = {
    "some areas": (first(area=0), "1 annotations have an area of 0 or less, the first is annotation 1: they do not"),
    "other classes": (
        lambda coco: (
            coco["categories"].append(dict(id=3, name="cow"))
            or coco["annotations"].append(dict(coco["annotations"][0], id=9, category_id=3))
        ),
        "1 annotations of 'cow' are left out",
    ),
    "corners": (first(bbox=[30, 20, 46, 30]), "box that ends outside its picture"),
    "a short polygon": (
        lambda coco: coco["annotations"][0]["segmentation"].append([1, 2]),
        "1 annotations have polygons that",
    ),
    "a class without": (
        lambda coco: [one.update(category_id=1) for one in coco["annotations"]] and None,
        "no annotation that counts of 'dog'",
    ),
    "ids of a table": (
        lambda coco: coco["annotations"].append(dict(coco["annotations"][0], id=9.0, area=0)),
        "area of 0",
    ),
    "text ids": (lambda coco: [one.update(id=str(one["id"])) for one in coco["annotations"]] and None, "is text"),
    "small pictures": (first("images", width=8), "1 of 2 images are smaller than 16 pixels"),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_worth_a_warning(tmp_path, name):
    spoil, told = NOTED[name]
    wrong, noted = findings(tmp_path / "a.json", spoil, least_side=16)
    assert not wrong and any(told in one for one in noted), noted


def test_metrics_decode_every_mask(tmp_path):
    """COCO's evaluation takes four numbers for a box, and does not come back from a code that does not add up."""
    path, short = tmp_path / "a.json", first(segmentation=[[1, 1, 9, 9]], area=0)
    assert findings(path, short)[0] == []
    assert "polygons" in findings(path, short, measured=True)[0][0]
    second = first(segmentation=[*content()["annotations"][0]["segmentation"], [1, 1, 9, 9]])
    wrong, noted = findings(path, second, measured=True)
    assert not wrong and "polygons" in noted[0]
    assert findings(path, lambda coco: coco.pop("annotations") and None) == ([], [])
    assert "nothing to measure" in findings(path, lambda coco: coco.pop("annotations") and None, measured=True)[0][0]


def test_run_length_codes_are_those_of_coco(tmp_path):
    rng = np.random.default_rng(0)
    masks = [(rng.random((HEIGHT, WIDTH)) < p).astype(np.uint8) for p in (0.0, 0.02, 0.5, 0.98, 1.0)]
    masks.append(np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 12))).astype(np.uint8))
    for mask in masks:
        for compressed in (True, False):
            code = rle(mask, compressed)
            if not compressed:
                assert coco_masks.decode(coco_masks.frPyObjects(code, HEIGHT, WIDTH)).tolist() == mask.tolist()
            assert findings(tmp_path / "a.json", first(segmentation=code)) == ([], [])
            counts = code["counts"]
            code["counts"] = counts + "1" if compressed else [*counts, 1]
            assert "add up" in findings(tmp_path / "a.json", first(segmentation=code))[0][0]


# Through the libraries' own classes


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    init_default_scope("mmdet")
    for i in (1, 2):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def config(root, **changes) -> dict:
    load = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
    base = dict(
        type="CocoDataset",
        data_root=str(root),
        ann_file="a.json",
        data_prefix=dict(img=""),
        metainfo=dict(classes=CLASSES),
    )
    return dict(base, pipeline=[dict(type="LoadImageFromFile"), load], **changes)


def dataset(root, **changes) -> CocoDataset:
    changes = {key: value for key, value in config(root, **changes).items() if key != "type"}
    return CocoDataset(**changes)


def test_what_is_left_out_is_what_mmdetection_leaves_out(root):
    rng = np.random.default_rng(0)
    coco = content()
    for i in range(200):
        box = [*rng.uniform(-40, 60, 2).round(1), *rng.choice([0, 0.5, 1, 8, 30], 2)]
        one = dict(id=10 + i, image_id=1, category_id=1, bbox=box, area=float(rng.choice([0, 4])), iscrowd=0)
        coco["annotations"].append(one | (dict(ignore=1) if rng.random() < 0.1 else {}))
    (root / "a.json").write_text(json.dumps(coco))
    kept = sum(len(dataset(root).get_data_info(i)["instances"]) for i in range(2))
    lost = [
        int(re.search(r": (\d+) annotations", one)[1])
        for one in annotation_findings(root / "a.json", CLASSES)
        if "do not count" in one
    ]
    assert 4 < kept == len(coco["annotations"]) - sum(lost)


def test_files_without_annotations_are_for_tests(root):
    written(root / "a.json", lambda coco: coco.pop("annotations") and None)
    check_dataset(dataset(root, test_mode=True))
    with pytest.raises(DataError, match="no box is left to learn from"):
        check_dataset(dataset(root))


@pytest.mark.parametrize("annotation", [dict(caption="a dog"), dict(segments_info=[], file_name="a.png")])
def test_other_formats_are_for_others_to_judge(annotation, root):
    """Files of captions have no categories."""
    content = dict(images=[dict(id=1, file_name="a.jpg")], annotations=[dict(annotation, id=1, image_id=1)])
    (root / "b.json").write_text(json.dumps(content))
    assert list(annotation_findings(root / "b.json", measured=True)) == []


def test_labels_follow_the_file(root):
    written(root / "a.json", lambda coco: coco["categories"].reverse())
    for wrapped in (dataset(root), ConcatDataset([dataset(root)])):
        with pytest.raises(DataError, match="another order"):
            check_dataset(wrapped)
    check_dataset(dataset(root, metainfo=dict(classes=("dog", "cat"))))


def test_warnings_are_told_every_time(root):
    written(root / "a.json", first(area=0))
    told = []
    for _ in range(2):
        check_dataset(dataset(root), warn=told.append)
    assert len(told) == 2 and told[0] == told[1] and "area of 0" in told[0]


@pytest.mark.parametrize("name", ["no area", "no images", "text height", "double annotation", "results", "no width"])
def test_files_that_cannot_be_built_are_named(root, name):
    """MMDetection's own errors are `KeyError: 'area'` and the like."""
    spoil, told = WRONG[name]
    written(root / "a.json", spoil)
    sampler = dict(type="DefaultSampler", shuffle=False)
    for inner in (config(root), dict(type="RepeatDataset", times=2, dataset=config(root))):
        with pytest.raises(DataError, match=told):
            Runner.build_dataloader(dict(dataset=inner, sampler=sampler))


def test_classes_as_text(root):
    written(root / "a.json", lambda coco: coco.update(categories=[dict(id=1, name="c"), dict(id=2, name="d")]))
    with pytest.raises(DataError, match=r"the text 'cd': expected a tuple"):
        check_dataset(dataset(root, metainfo=dict(classes="cd")))


def test_files_of_metrics_are_looked_at(root):
    written(root / "a.json")
    data, path = dataset(root, test_mode=True), str(root / "b.json")
    metric = dict(type="CocoMetric", ann_file=path, metric=["bbox", "segm"])
    check_evaluator(metric, data)  # not there: the metric's own error
    written(root / "b.json", first(segmentation=dict(size=[HEIGHT, WIDTH], counts=[5])))
    with pytest.raises(DataError, match=r"b\.json: 1 annotations have a run-length code"):
        check_evaluator([metric], data)
    check_evaluator(dict(metric, metric="bbox"), data)
    written(root / "b.json", first("categories", name="Cat"))
    with pytest.raises(DataError, match=r"b\.json has no category 'cat'"):
        check_evaluator(metric, data)

    def other_images(coco: dict) -> None:
        for one in (*coco["images"], *coco["annotations"]):
            key = "id" if "file_name" in one else "image_id"
            one[key] += 5

    written(root / "b.json", other_images)
    with pytest.raises(DataError, match=r"b\.json, which a metric reads, has none of the image 1 and 2 in all"):
        check_evaluator(metric, data)
    written(root / "b.json", lambda coco: coco["images"].append(dict(coco["images"][0], id=3)))
    told = []
    check_evaluator(metric, data, told.append)
    assert "1 images that are not tested and count as missed" in told[0]


def test_more_classes_than_label_maps_could_have(root):
    """Boxes have any number of classes; label maps beside them have meanings of their own."""
    classes = tuple(f"class {i}" for i in range(400))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
    written(root / "a.json", lambda coco: coco.update(categories=categories))
    (root / "maps").mkdir()
    for i in (1, 2):
        Image.fromarray(np.full((HEIGHT, WIDTH), 182, np.uint8)).save(root / "maps" / f"{i}.png")
    beside = dict(metainfo=dict(classes=classes), data_prefix=dict(img="", seg="maps"))
    check_dataset(dataset(root, **beside))
    (root / "maps" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"maps/2\.png cannot be read"):
        check_dataset(dataset(root, **beside))
