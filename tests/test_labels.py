"""Labels and the ontology, against a second reading of the published tables."""

import copy
import csv
import importlib.resources
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.errors import InvalidInputError
from audiotag.labels.label_set import Label, LabelSet, audioset_labels
from audiotag.labels.ontology import Node

LABELS = audioset_labels()


def table(name):
    path = importlib.resources.files("audiotag") / "data" / name
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


ONTOLOGY = {mid: (name, parents.split(), index) for mid, name, parents, _, index in table("ontology.csv")}


def slow_under(mid):
    """Indices of the labels at or under a node, by walking up from every label."""

    def reaches(start):
        return start == mid or any(reaches(parent) for parent in ONTOLOGY[start][1])

    return sorted(int(index) for start, (_, _, index) in ONTOLOGY.items() if index and reaches(start))


UNDER = {mid: slow_under(mid) for mid in ONTOLOGY}


def test_audioset_is_the_published_table():
    assert [(str(label.index), label.mid, label.display_name) for label in LABELS] == [
        tuple(row) for row in table("class_labels_indices.csv")
    ]
    assert len(LABELS) == 527 and len(LABELS.nodes) == 632
    assert LABELS[0] == Label(0, "/m/09x0r", "Speech") and LABELS[137].display_name == "Music"
    assert LABELS.names[-1] == LABELS[-1].display_name and LABELS.mids[74] == "/m/0bt9lr"


@pytest.mark.parametrize(
    "wanted",
    ["Dog", "dog", " DOG ", "/m/0bt9lr", 74, np.int64(74), "74", LABELS[74], Node("/m/0bt9lr", "Dog", 74)],
    ids=repr,
)
def test_resolve_takes_every_way_to_name_a_label(wanted):
    assert LABELS.resolve(wanted) is LABELS[74]
    assert wanted in LABELS


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("metro", "Subway, metro, underground"),
        ("Male speech", "Male speech, man speaking"),
        ("male speech,  man speaking", "Male speech, man speaking"),
        ("Fire", "Fire"),  # and not the fire engine
        ("Speech", "Speech"),
    ],
)
def test_resolve_takes_synonyms_and_prefers_whole_names(wanted, name):
    assert LABELS.resolve(wanted).display_name == name


def test_every_node_is_found_by_name_and_mid():
    for node in LABELS.nodes:
        assert LABELS.node(node.name) == LABELS.node(node.name.upper()) == LABELS.node(node.mid) == node


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Speach", "near names: 'Speech'"),
        ("dgo", "near names: 'Dog'"),
        ("qqqqqq", "audiotag labels WORDS"),
        ("Human sounds", "category of the ontology and no label.*'Speech'.* and 67 more"),
        ("Yak", "labels under it: none"),
        ("inside", "no label is called 'inside'; near names: 'Inside, "),  # a synonym of three labels
        (527, "0 to 526, got 527"),
        (-1, "0 to 526"),
        ("527", "0 to 526"),
        (1.0, "type float"),
        (None, "type NoneType"),
        (True, "type bool"),
        (Label(74, "/m/0bt9lr", "Cat"), "another set of labels"),
        (Node("", "Dog", 74), "another set of labels"),
    ],
)
def test_resolve_says_what_is_wrong(wanted, message):
    with pytest.raises(InvalidInputError, match=message):
        LABELS.resolve(wanted)
    assert wanted not in LABELS


@pytest.mark.parametrize("mid", [mid for mid in ONTOLOGY if UNDER[mid]][::7])
def test_a_node_selects_everything_under_it(mid):
    assert LABELS.select(mid).tolist() == LABELS.select(ONTOLOGY[mid][0]).tolist() == UNDER[mid]


def test_select_counts_and_forms():
    assert len(LABELS.select()) == 527
    animal, dog = UNDER["/m/0jbk"], UNDER["/m/0bt9lr"]
    assert LABELS.select("Animal", exclude="Dog").tolist() == sorted(set(animal) - set(dog))
    assert LABELS.select("Animal", exclude=[74]).tolist() == sorted(set(animal) - {74})
    # Objects and indices mean the label alone; names and mids everything under it.
    assert LABELS.select(LABELS.resolve("Animal")).tolist() == LABELS.select(72).tolist() == [72]
    assert LABELS.select(["72", "Dog"]).tolist() == sorted({72, *dog})
    assert LABELS.select(LABELS.node("Human sounds")).tolist() == UNDER["/m/0dgw9r"]
    assert LABELS.select(name for name in ("Dog", "Cat")).dtype == np.int64


def test_names_with_commas_can_be_listed():
    several = LABELS.select("Male speech, man speaking,Dog , Domestic animals, pets")
    assert several.tolist() == LABELS.select(["Male speech, man speaking", "Dog", "Domestic animals, pets"]).tolist()
    assert LABELS.split("male speech,man speaking,,dog") == ["male speech, man speaking", "dog"]
    assert LABELS.split("Dog, nonsense, Cat") == ["Dog", "nonsense", "Cat"]
    assert LABELS.split("") == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([node.name for node in LABELS.nodes]), min_size=1, max_size=6), st.booleans())
def test_joined_names_come_apart_again(names, spaces):
    assert LABELS.split((", " if spaces else ",").join(names)) == names


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("Catt", None, "include: no label is called 'Catt'; near names: 'Cat'"),
        (None, ["Dog", "Catt"], "exclude: no label is called 'Catt'"),
        ("Yak", None, "include: 'Yak' is in the ontology, but no label is under it"),
        ([], None, "include is empty"),
        ("", None, "include is empty"),
        ("Dog", "Animal", "leave no label"),
    ],
)
def test_select_says_what_is_wrong(include, exclude, message):
    with pytest.raises(InvalidInputError, match=message):
        LABELS.select(include, exclude)


def test_find():
    def names(words):
        return [label.display_name for label in LABELS.find(words)]

    assert names("dog")[:3] == ["Dog", "Whimper (dog)", "Canidae, dogs, wolves"]
    assert {"Bark", "Howl"} <= set(names("dog")), "labels under a dog are found too, after those that say dog"
    assert names("SPEECH man") == ["Male speech, man speaking", "Female speech, woman speaking"]
    assert names("/m/04rlf") == names("137") == ["Music"]
    assert names("") == list(LABELS.names)
    assert names("qqqq") == []
    assert set(names("human sounds")) == {LABELS.names[i] for i in UNDER["/m/0dgw9r"]}


def test_parents_children_and_all_above():
    assert [node.name for node in LABELS.parents("Hiss")] == ["Cat", "Snake", "Steam", "Onomatopoeia"]
    assert LABELS.parents("Animal") == []
    for mid, (_, parents, _) in ONTOLOGY.items():
        assert [node.mid for node in LABELS.parents(mid)] == parents
        assert sorted(n.mid for n in LABELS.children(mid)) == sorted(m for m in ONTOLOGY if mid in ONTOLOGY[m][1])
        above = [node.mid for node in LABELS.ancestors(mid)]
        assert mid not in above and len(set(above)) == len(above) and above[: len(parents)] == parents
        if ONTOLOGY[mid][2]:
            assert all(int(ONTOLOGY[mid][2]) in UNDER[a] for a in above)
        own = ONTOLOGY[mid][2]
        assert [label.index for label in LABELS.descendants(mid)] == [i for i in UNDER[mid] if str(i) != own]


def test_roll_up_gives_a_parent_its_best_child():
    scores = np.random.default_rng(0).random((2, 3, 527), dtype=np.float32)
    rolled = LABELS.roll_up(scores)
    expected = np.stack([scores[..., UNDER[label.mid]].max(-1) for label in LABELS], axis=-1)
    assert rolled.dtype == np.float32 and np.array_equal(rolled, expected)
    assert np.array_equal(LABELS.roll_up(rolled), rolled) and (rolled >= scores).all() and (rolled > scores).any()
    for bad in (np.zeros(526), np.float32(1)):
        with pytest.raises(InvalidInputError, match="527"):
            LABELS.roll_up(bad)


def test_sets_without_an_ontology():
    labels = LabelSet.from_names(["ok", "Broken, badly", "7", "10"])
    assert labels.mids == ("",) * 4 and labels.parents("ok") == labels.children("ok") == []
    assert labels.select("broken,badly, OK").tolist() == [0, 1]
    assert labels.resolve("7").index == 2 and labels.resolve("3").index == 3  # a name before an index
    assert np.array_equal(labels.roll_up(np.array([0.1, 0.2, 0.3, 0.4])), [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(InvalidInputError, match="there are: 'ok', 'Broken, badly'"):
        labels.resolve("zzz")
    both_cases = LabelSet.from_names(["a", "A"])
    assert both_cases.resolve("A").index == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abc", "single string"),
        ([], "at least one"),
        (["a", "b", "a"], "'a' twice"),
        (["a", " "], "label 1 must have a name"),
        (["a", 3], "label 1 must have a name, got 3"),
    ],
)
def test_bad_names(names, message):
    with pytest.raises(InvalidInputError, match=message):
        LabelSet.from_names(names)


def test_bad_ontologies():
    labels = [Label(0, "/a", "A"), Label(1, "/b", "B")]
    a, b = Node("/a", "A", 0), Node("/b", "B", 1)
    with pytest.raises(InvalidInputError, match=r"circle: (A > B > A|B > A > B)"):
        LabelSet(labels, [(a, ["/b"]), (b, ["/a"])])
    with pytest.raises(InvalidInputError, match="parent '/c'"):
        LabelSet(labels, [(a, ["/c"]), (b, [])])
    with pytest.raises(InvalidInputError, match="every label exactly once"):
        LabelSet(labels, [(a, [])])
    with pytest.raises(InvalidInputError, match="in order"):
        LabelSet(labels[::-1])


def test_copies_and_equality():
    small = LabelSet([Label(0, "/a", "A")], [(Node("/r", "Root", None), []), (Node("/a", "A", 0), ["/r"])])
    for labels in (LABELS, small, LabelSet.from_names(["a", "b"])):
        for again in (pickle.loads(pickle.dumps(labels)), copy.deepcopy(labels)):
            assert again == labels and hash(again) == hash(labels) and again.nodes == labels.nodes
    assert len(pickle.dumps(LABELS)) < 200, "AudioSet's labels travel by name"
    assert small != LabelSet([Label(0, "/a", "A")]) and list(LABELS) != LABELS
    with pytest.raises(TypeError):
        LABELS[0] = LABELS[1]


def test_labels_need_neither_torch_nor_numpy():
    program = """
import sys
from audiotag.labels.label_set import audioset_labels
audioset_labels().find("dog")
print("torch" in sys.modules, "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
