"""Labelled data in its forms, and every problem with it found at once."""

import shutil

import numpy as np
import pytest
import soundfile

from audiotag.errors import InvalidInputError
from audiotag.training.fit.clips import Clip, clip_targets
from audiotag.training.fit.data import read_data
from audiotag.training.fit.problems import Problems
from audiotag.training.fit.splits import deal, linked_groups, make_folds
from audiotag.training.fit.tables import annotation_of, read_table, split_labels

from .sounds import RATE, made, write_folders, write_mixtures, write_table


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("sounds"), takes=3)


def problems_of(*args, **kwargs):
    with pytest.raises(InvalidInputError) as caught:
        read_data(*args, **kwargs)
    return str(caught.value)


def put(path, seed=0, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, made("hiss", seed, seconds), RATE)
    return path


def test_folders_are_labels(folders):
    data = read_data(folders)
    assert data.labels == ("beep", "buzz", "hiss") and data.task == "single" and len(data.clips) == 9
    assert data.targets.sum(0).tolist() == [3, 3, 3] and data.targets.sum() == 9
    assert {clip.group for clip in data.clips} == {clip.path for clip in data.clips}
    assert all(clip.duration_s == pytest.approx(1.0) for clip in data.clips)


def test_label_folders_at_any_depth(tmp_path):
    for i in range(2):
        put(tmp_path / "animals" / "dog" / f"{i}.wav", i)
        put(tmp_path / "animals" / "dog" / "puppies" / f"{i}.wav", 10 + i)  # inside a label: still a dog
        put(tmp_path / "cars" / f"{i}.wav", 20 + i)
    data = read_data(tmp_path)
    assert data.labels == ("cars", "dog") and data.targets.sum(0).tolist() == [2, 4]


def test_parents_as_groups(tmp_path):
    for i in range(4):
        put(tmp_path / "dog" / f"day{i // 2}" / f"{i}.wav", i)
        put(tmp_path / "cat" / f"day{i // 2}" / f"{i}.wav", 10 + i)
    data = read_data(tmp_path, group="parent")
    assert data.labels == ("cat", "dog") and len({clip.group for clip in data.clips}) == 4


@pytest.mark.parametrize("name", ["Background", "noise", "none", "silence"])
def test_background_is_no_label(folders, tmp_path, name):
    put(tmp_path / "dog" / "a.wav", 1), put(tmp_path / "dog" / "b.wav", 2), put(tmp_path / name / "c.wav", 3)
    data = read_data(tmp_path, negatives=folders)
    assert data.labels == ("dog",) and data.task == "multi"
    assert len(data.clips) == 12 and data.targets.sum() == 2


def test_split_and_fold_folders(tmp_path):
    folders = [tmp_path / split / kind for split in ("train", "test") for kind in ("dog", "cat")]
    for number, folder in enumerate(folders):
        for i in range(2):
            put(folder / f"{i}.wav", 2 * number + i)
    data = read_data(tmp_path)
    assert data.labels == ("cat", "dog") and sorted(c.split for c in data.clips) == ["test"] * 4 + ["train"] * 4


def test_tables(tmp_path):
    write_mixtures(tmp_path, 12)
    data = read_data(tmp_path / "labels.csv")
    assert data.task == "multi" and data.labels == ("beep", "buzz", "hiss") and len(data.clips) == 12
    assert (data.targets.sum(1) == 0).any()


def test_esc50_like_columns(tmp_path):
    """filename and category are understood, and files in ../audio are found."""
    rows = []
    for i in range(6):
        put(tmp_path / "audio" / f"{i}.wav", i)
        rows.append([f"{i}.wav", i % 3 + 1, i % 2, ("dog", "cat")[i % 2]])
    (tmp_path / "meta").mkdir()
    table = write_table(tmp_path / "meta" / "meta.csv", ["filename", "fold", "target", "category"], rows)
    data = read_data(table)
    folds = make_folds(data.clips, data.targets, task=data.task, seed=0, problems=data.problems)
    assert folds.given and folds.names == ("1", "2", "3") and folds.index.tolist() == [0, 1, 2, 0, 1, 2]


def test_marks_in_label_cells(tmp_path):
    assert split_labels("dog; cat;-owl;?fox") == (("dog", " cat"), ("owl",), ("fox",))
    assert split_labels("") == split_labels("silence") == ((), (), ())
    rows = [[f"{i}.wav", "dog" if i % 2 else "-dog;?fox"] for i in range(4)] + [["4.wav", "fox"], ["5.wav", "fox"]]
    for i in range(6):
        put(tmp_path / f"{i}.wav", i)
    data = read_data(write_table(tmp_path / "t.csv", ["file", "label"], rows))
    assert data.labels == ("dog", "fox") and data.task == "multi"
    np.testing.assert_array_equal(data.targets[0], [0, np.nan])
    np.testing.assert_array_equal(data.targets[1], [1, 0])


def test_rows_of_one_file_are_one_clip(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.wav", i)
    rows = [["0.wav", "dog"], ["0.wav", "cat"], ["1.wav", "dog"], ["2.wav", "cat"], ["3.wav", ""]]
    data = read_data(write_table(tmp_path / "t.tsv", ["file", "label"], rows))
    assert len(data.clips) == 4 and data.targets[0].tolist() == [1, 1]


def test_dataframe_and_lists(folders):
    pandas = pytest.importorskip("pandas")
    files = sorted(str(p) for p in folders.rglob("*.wav"))
    labels = [p.split("/")[-2] for p in files]
    by_list = read_data(files, labels)
    by_frame = read_data(pandas.DataFrame({"file": files, "label": labels}))
    np.testing.assert_array_equal(by_list.targets, by_frame.targets)
    assert by_list.labels == by_frame.labels
    assert read_data(files, [[x] for x in labels]).labels == by_list.labels


def test_what_the_events_command_writes_is_read(tmp_path):
    """Audacity and Raven files as audiotag writes them: the events come back as clips."""
    from audiotag.outputs.formats import About, find_format

    events = [
        {"label": "Dog", "onset_s": 1.0, "offset_s": 3.5, "peak": 0.9, "mean": 0.8, "index": 0, "mid": ""},
        {"label": "Cat", "onset_s": 6.0, "offset_s": 6.5, "peak": 0.9, "mean": 0.8, "index": 1, "mid": ""},
    ]
    from audiotag.outputs.writers import open_writer

    for i, name in enumerate(("audacity", "raven", "audacity")):
        recording = put(tmp_path / f"{i}.wav", i, seconds=12.0)
        form = find_format("events", name)
        with open_writer(form, About("events", fmax_hz=15_000), tmp_path / (recording.stem + form.suffix)) as writer:
            writer.write({"source": str(recording), "duration_s": 12.0, "events": events})
    data = read_data(tmp_path)
    assert data.labels == ("Cat", "Dog") and data.task == "multi"
    for clip in data.clips:
        assert clip.offset_s - clip.onset_s >= 1.0 - 1e-6
    labelled = [c for c in data.clips if c.present]
    assert len(labelled) == 6
    assert {(c.onset_s, c.offset_s) for c in labelled if "Dog" in c.present} == {(1.0, 3.5)}
    assert {(c.onset_s, c.offset_s) for c in labelled if "Cat" in c.present} == {(5.75, 6.75)}  # widened to a second
    empty = [c for c in data.clips if not c.present]
    assert {(c.onset_s, c.offset_s) for c in empty} == {(0.0, 1.0), (3.5, 6.0), (6.5, 12.0)}


def test_annotation_beside_a_recording():
    assert annotation_of("x/a.wav", {"a.wav", "a.txt"}) == ("audacity", "a.txt")
    assert annotation_of("x/a.wav", {"a.wav.labels.txt"}) == ("audacity", "a.wav.labels.txt")
    assert annotation_of("x/a.wav", {"a.Table.1.selections.txt"}) == ("raven", "a.Table.1.selections.txt")
    assert annotation_of("x/a.wav", {"b.txt"}) is None


def test_long_events_are_cut_and_overlaps_known(tmp_path):
    for i in range(2):
        put(tmp_path / f"{i}.wav", i, seconds=30.0)
    rows = [[f"{i}.wav", label, on, off] for i in range(2) for label, on, off in [("a", 0, 25), ("b", 20, 22)]]
    data = read_data(write_table(tmp_path / "t.csv", ["file", "label", "onset", "offset"], rows))
    first = [c for c in data.clips if c.path.endswith("0.wav")]
    a = sorted((c.onset_s, c.offset_s) for c in first if c.present == {"a"})
    assert len(a) == 2 and a[0][0] == 0  # 25 s in three parts, and the last of them has b, too
    assert sorted(sorted(c.present) for c in first if c.present) == [["a"], ["a"], ["a", "b"], ["a", "b"]]


def test_every_problem_at_once(tmp_path):
    """Each fault of the list, in one message, with file and line."""
    for i in range(6):
        put(tmp_path / f"{i}.wav", i, seconds=1.0)
    table = write_table(
        tmp_path / "t.csv",
        ["file", "label", "onset", "offset"],
        [
            ["0.wav", "dog", "", ""],
            ["1.wav", "Dog ", "", ""],
            ["2.wav", "fox", "", ""],
            ["missing.wav", "dog", "", ""],
            ["3.wav", "cat", "7", "8"],
            ["4.wav", "cat", "0.5", "x"],
            ["5.wav", "cat", "0.5", ""],
        ],
    )
    told = problems_of(table)
    assert f"{table}:5: no file 'missing.wav'" in told
    assert f"{table}:3: label 'Dog ' and 'dog'" in told and "nearly equal" in told
    assert f"{table}:6: onset 7 s is past the end at 1.00 s" in told
    assert f"{table}:7: offset 'x' is no number" in told
    assert f"{table}:8: has an onset or an offset, not both" in told
    assert f"{table}:4: label 'fox' is in 1 group" in told
    lines = told.splitlines()
    assert lines[0] == "7 problems with the data, nothing was done:" and len(lines) == 8
    assert all(line.count("; ") >= 1 for line in lines[1:])  # each has a remedy


def test_marks_that_contradict(tmp_path):
    for i in range(5):
        put(tmp_path / f"{i}.wav", i)
    rows = [["0.wav", "dog;-dog"], ["1.wav", "cat"], ["2.wav", "dog"], ["3.wav", "dog"], ["3.wav", "-dog"]]
    told = problems_of(write_table(tmp_path / "t.csv", ["file", "label"], [*rows, ["4.wav", "cat"]]))
    assert f"{tmp_path}/t.csv:2: 'dog' is present and absent in one row" in told
    assert f"{tmp_path}/t.csv:6: 'dog' is present and absent in one clip (see {tmp_path}/t.csv:5)" in told


def test_many_alike_do_not_hide_the_others(tmp_path):
    rows = [[f"gone{i}.wav", "dog"] for i in range(100)] + [["a.wav", "dog"], ["a.wav", "-dog"]]
    put(tmp_path / "a.wav")
    told = problems_of(write_table(tmp_path / "t.csv", ["file", "label"], rows)).splitlines()
    assert told[0].startswith("103 problems") and len(told) == 1 + 12 + 1 + 3 and "88 more" in told[13]
    assert "present and absent" in told[14] and "1 group" in told[15] and "no negatives" in told[16]


def test_an_expression_for_groups_that_finds_nothing_is_one_problem(folders, tmp_path):
    told = problems_of(folders, group="site").splitlines()
    assert len(told) == 2 and "'site' is no column, and as an expression it finds nothing" in told[1]
    told = problems_of(folders, group="(beep|buzz)").splitlines()[1:]
    outside = write_folders(tmp_path, kinds=("none",), takes=2)  # negatives may lie anywhere
    data = read_data(folders, group=r"(\d)\.wav", negatives=outside)
    assert len({clip.group for clip in data.clips}) == 3
    data = read_data(folders, group=r"(?:beep|buzz|hiss)/(\d)", negatives=outside)
    assert len({clip.group for clip in data.clips}) == 3 + 2
    hiss = [line for line in told if "finds nothing in" in line]
    assert len(hiss) == 3 and all("hiss/" in line for line in hiss)


def test_an_offset_past_the_end_is_told(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.wav", i, seconds=3.0)
    rows = [[f"{i}.wav", ("dog", "cat")[i % 2], 1, 3.05 if i else 9] for i in range(4)]
    data = read_data(write_table(tmp_path / "t.csv", ["file", "label", "onset", "offset"], rows))
    assert [str(p) for p in data.problems.warnings] == [
        f"{tmp_path}/t.csv:2: offset 9 s is past the end at 3.00 s; the clip ends with the recording"
    ]
    assert all(clip.offset_s <= 3.0 for clip in data.clips)


def test_training_on_the_test_split_is_refused(folders, tmp_path):
    assert "one clip in two splits" in problems_of(folders, test=folders)
    told = problems_of(folders, test=shutil.copytree(folders, tmp_path / "copy"))
    assert "label 'buzz' is in 0 groups of recordings that share nothing with the test split" in told
    shutil.rmtree(tmp_path / "copy")
    for kind in ("beep", "buzz", "hiss"):  # the same bytes elsewhere: one clip a label less to train on
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.wav").write_bytes((folders / kind / "0.wav").read_bytes())
    data = read_data(folders, test=tmp_path)
    folds = make_folds(data.clips, data.targets, task="single", seed=0, problems=data.problems)
    assert folds.train().sum() == 6 and any("shares bytes" in str(p) for p in data.problems.warnings)


def test_a_label_without_negatives(tmp_path):
    put(tmp_path / "dog" / "a.wav", 1), put(tmp_path / "dog" / "b.wav", 2)
    assert "label 'dog' has no negatives" in problems_of(tmp_path)
    assert read_data(tmp_path, negatives=write_folders(tmp_path.parent / "n", takes=1)).labels == ("dog",)


def test_copies_are_no_second_group(tmp_path):
    for i in range(3):
        put(tmp_path / "cat" / f"{i}.wav", i)
        put(tmp_path / "dog" / f"{i}.wav", 99)  # the same bytes under three names
    assert "label 'dog' is in 1 group" in problems_of(tmp_path)


def test_unreadable_files_are_left_out_or_stop(tmp_path):
    write_folders(tmp_path, takes=14, kinds=("beep", "hiss"))
    (tmp_path / "beep" / "0.wav").write_bytes(b"no sound")
    data = read_data(tmp_path)
    assert len(data.clips) == 27 and len(data.unreadable) == 1 and "0.wav" in str(data.problems.warnings[0])
    (tmp_path / "beep" / "1.wav").write_bytes(b"no sound")
    told = problems_of(tmp_path)
    assert "2 of 28 recordings cannot be read" in told and "1.wav" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"group": "("}, "no column and no expression"),
        ({"group": "xyz"}, "finds nothing"),
        ({"folds": "nope"}, "neither a number nor a column"),
        ({"task": "several"}, "task must be one of"),
        ({"negatives": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_bad_options(folders, options, told):
    assert told in problems_of(folders, **options)


def test_nothing_there(tmp_path):
    assert "no such file" in problems_of(tmp_path / "nowhere")
    assert "no label" in problems_of(tmp_path)
    put(tmp_path / "a.wav")
    assert "lies in no folder that names its label" in problems_of(tmp_path)


def test_table_of_another_kind(tmp_path):
    problems = Problems()
    assert read_table(write_table(tmp_path / "t.csv", ["name", "x"], [["a", "b"]]), problems) == []
    assert "no column file" in str(problems.errors[0])


# -- splits --------------------------------------------------------------------------------------------------------


def test_no_group_and_no_copy_on_both_sides(tmp_path):
    for kind in ("dog", "cat"):
        for i in range(12):
            put(tmp_path / kind / f"site{i % 6}_{i}.wav", i)
    put(tmp_path / "dog" / "site0_copy.wav", 7)
    put(tmp_path / "cat" / "site5_copy.wav", 1)  # links site5 and site1, and both with site0 through 7
    data = read_data(tmp_path, group=r"(site\d)")
    for seed in range(5):
        folds = make_folds(data.clips, data.targets, n_folds=3, task="single", seed=seed, problems=data.problems)
        for fold in range(3):
            train, test = folds.train(fold), folds.test(fold)
            assert test.any() and train.any() and not (train & test).any()
            sides = [
                {(c.digest, c.group) for c, s in zip(data.clips, side, strict=True) if s} for side in (train, test)
            ]
            assert not {d for d, _ in sides[0]} & {d for d, _ in sides[1]}
            assert not {g for _, g in sides[0]} & {g for _, g in sides[1]}
        assert sum(folds.test(f).sum() for f in range(3)) == len(data.clips)


def test_given_folds_that_cut_a_group_do_not_leak(tmp_path):
    rows = []
    for i in range(8):
        put(tmp_path / f"{i}.wav", i // 2)  # pairs of equal bytes, one in each fold
        rows.append([f"{i}.wav", ("dog", "cat")[i // 4], i % 2])
    data = read_data(write_table(tmp_path / "t.csv", ["file", "label", "fold"], rows))
    folds = make_folds(data.clips, data.targets, task="single", seed=0, problems=data.problems)
    assert folds.index.tolist() == [0, 1] * 4
    assert not folds.train(0).any()  # every clip of fold 1 has its copy in fold 0
    assert any("cut through" in str(p) for p in data.problems.warnings)


def test_groups_dealt_for_several_labels_are_balanced():
    """Against a random deal: the spread of every label over folds, on average over draws."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(100), rng.integers(1, 6, 100))
    targets = (rng.random((len(group), 6)) < [0.3, 0.2, 0.1, 0.1, 0.05, 0.05]).astype(np.float32)

    def spread(index):
        counts = np.stack([targets[index == f].sum(0) for f in range(5)])
        return (counts.std(0) / counts.mean(0)).mean()

    dealt = deal(targets, group, 5, 0)
    at_random = [spread(rng.integers(0, 5, 100)[group]) for _ in range(20)]
    assert spread(dealt) < 0.5 * min(at_random)
    assert all(len(set(dealt[group == g])) == 1 for g in range(100))


def test_linked_groups_are_transitive():
    clips = [Clip("a", group="1", digest="x"), Clip("b", group="2", digest="x"), Clip("c", group="2", digest="y")]
    clips += [Clip("d", group="3", digest="y"), Clip("e", group="4", digest="z")]
    assert linked_groups(clips).tolist() == [0, 0, 0, 0, 1]
    assert clip_targets(clips, ["q"]).shape == (5, 1)
