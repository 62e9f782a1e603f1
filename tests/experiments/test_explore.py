"""python -m experiments.explore: the values in the page, and the page in a browser: its arithmetic against the engine's
bits, its words, keyboard, names, widths and colours."""

import json
import re
import shutil
from decimal import Decimal, localcontext
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments import common, explore
from minicnn import cpu, data, predict
from minicnn.paper import attacks, proof1
from minicnn.paper.networks import paper_cnn, rescaled
from minicnn.paper.saliency import saliency_maps
from tests.experiments.conftest import ROOT, assert_mistake, emulate, read_json, run, succeed

TRAINED = (
    ROOT / "experiments" / "results" / "mnist"
)  # that these networks see digits otherwise than their own is no matter
NAMES = ("standard", "temperature")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with explore.html and explore.json, of committed networks."""
    path = tmp_path_factory.mktemp("explore")
    succeed("explore", "--trained", TRAINED, "--out", path)
    return path


@pytest.fixture(scope="module")
def values(folder):
    return read_json(folder / "explore.json")


@pytest.fixture(scope="module")
def shown(values):
    """The image (1, 1, 28, 28) and its label (1,), as they are in the data."""
    digits, i = data.load("digits"), values["index"]
    return digits.test_images[i : i + 1], digits.test_labels[i : i + 1]


@pytest.fixture(scope="module")
def networks():
    return {name: common.load_network(TRAINED / f"{name}.npz") for name in NAMES}


def logits_of(values, name):
    return np.array(values["networks"][name]["logits"], np.float32)


class Page(HTMLParser):
    """The data that a page holds, and what it would load."""

    def __init__(self, source):
        super().__init__()
        self.loads, self.data, self.inside = [], "", False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.inside = dict(attributes).get("id") == "data"
        self.loads += [value for key, value in attributes if key in ("src", "href", "srcset", "action")]

    def handle_data(self, text):
        self.data += text if self.inside else ""

    def handle_endtag(self, tag):
        self.inside = False


def test_explore_writes_one_page_with_the_values_of_its_json(folder, values):
    source = (folder / "explore.html").read_text("utf-8")
    page = Page(source)
    assert json.loads(page.data) == values
    assert page.loads == ["data:,"] and "url(" not in source and "@import" not in source
    assert values["label"] in range(10) and values["dataset"] == "digits"


def test_explore_page_survives_what_a_command_line_can_hold(tmp_path, values):
    explore.write(tmp_path / "page.html", values | {"command": "</script><b>&"})
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert json.loads(page.data)["command"] == "</script><b>&"


def test_explore_embeds_float32_to_the_bit(values, shown, networks):
    image, label = shown
    assert np.array_equal(np.array(values["image"], np.float32), image.reshape(-1))
    assert values["label"] == label[0]
    for arithmetic, attack in values["attack"]["arithmetics"].items():
        maps = saliency_maps(networks["temperature"], image, label, arithmetic=arithmetic)
        assert np.array_equal(np.array(attack["map"], np.float32), maps.maps.reshape(-1))
    for name, network in networks.items():
        assert np.array_equal(logits_of(values, name), predict(network, image)[0])


@pytest.mark.parametrize("setting", [attacks.Setting(), attacks.Setting(limit=7, skip_unchanged=True)])
def test_explore_repeats_the_attack_move_by_move(shown, networks, setting):
    image, label = shown
    sample = common.Sample(image, label, np.array([0]), 0)
    found = explore.embed(networks, sample, setting)["attack"]["arithmetics"]
    assert not any(found["plain"]["map"]) and found["plain"]["log10_size"] is None  # else the case is none
    for arithmetic, attack in found.items():
        told = attacks.Setting(arithmetic, limit=setting.limit, skip_unchanged=setting.skip_unchanged)
        result = attacks.attack(networks["temperature"], image, label, "1", told)
        made = image.copy()
        made.reshape(-1)[attack["pixels"]] = setting.maximum
        assert np.array_equal(made, result.adversarial)
        assert len(attack["pixels"]) == len(set(attack["pixels"])) == result.moves[0]
        assert attack["succeeded"] == result.succeeded[0]
        still = [decision == label[0] for decision in attack["decisions"]]
        assert still == [True] * result.moves[0] + [not result.succeeded[0]]


def test_explore_chooses_the_first_that_is_right_and_blank(networks):
    sample = common.sample(data.load("digits"), 100, seed=0)
    images, labels = sample.images, sample.labels
    plain = saliency_maps(networks["temperature"], images, labels, arithmetic="plain")
    right, blank = plain.logits.argmax(axis=1) == labels, plain.zeros == 28 * 28
    assert right.any() and blank.any()
    first = sample.indices[np.flatnonzero(right & blank)[0]]
    assert explore.choose(networks["temperature"], sample, T=1).indices == [first]
    seen = sample.part(right & ~blank if (right & ~blank).any() else right)
    assert explore.choose(networks["standard"], seen, T=1).indices == seen.indices[:1]


def test_explore_without_networks(tmp_path):
    assert_mistake(["explore", "--out", tmp_path], tmp_path, "python -m experiments.train --dataset digits")
    assert_mistake(["explore", "--trained", tmp_path, "--out", tmp_path / "out"], tmp_path / "standard.npz")


def test_explore_refuses_a_network_of_another_temperature(tmp_path):
    for name, source in (("standard", "standard"), ("temperature", "standard")):
        shutil.copy(TRAINED / f"{source}.npz", tmp_path / f"{name}.npz")
    assert_mistake(["explore", "--out", tmp_path], "was trained at T = 1, not at 20")


def test_explore_takes_the_networks_of_its_folder(tmp_path, values):
    for name in NAMES:
        shutil.copy(TRAINED / f"{name}.npz", tmp_path / f"{name}.npz")
    code, out, err = run("explore", "--out", tmp_path)
    assert (code, err) == (0, "") and str(tmp_path / "explore.html") in out
    assert read_json(tmp_path / "explore.json")["networks"] == values["networks"]


# In a browser


@pytest.fixture
def tab(driver, folder):
    """The page, freshly loaded, 1400 pixels wide; whatever is done with it, the console stays empty."""
    emulate(driver)
    driver.get((folder / "explore.html").as_uri())
    yield driver
    assert driver.get_log("browser") == []


def text(tab, selector):
    """What an element says, an exponent as the page's sources have it: 4 × 10^−7."""
    script = """const copy = document.querySelector(arguments[0]).cloneNode(true);
    copy.querySelectorAll("sup").forEach((sup) => { sup.textContent = "^" + sup.textContent; });
    return copy.textContent.replace(/\\s+/g, " ").trim();"""
    return tab.execute_script(script, selector)


def read(shown):
    """The number that the page shows as text."""
    if shown.startswith("1 − "):
        return 1 - read(shown[4:])
    digits, _, exponent = shown.replace("−", "-").partition(" × 10^")
    return float(f"{digits}e{exponent or 0}")


def everywhere(tab, function):
    """A function of the page at every position of both sliders, and of the logits of both networks: list over networks
    of lists over T of lists over scales. function: JavaScript from (z, k, T)."""
    script = f"""const at = {function};
    return Object.values(data.networks).map(({{ logits }}) => TEMPERATURES.map((T) => SCALES.map(
      (scale) => at(scaledLogits(logits, scale), label, T))));"""
    return tab.execute_script(script)


def positions(tab):
    """The values that the sliders can take: T and scale."""
    return tab.execute_script("return [TEMPERATURES, SCALES]")


def by_the_engine(tab, values):
    """(p - y) / T by the engine at every position of both sliders: networks, T, scales, classes."""
    temperatures, scales = positions(tab)
    labels = np.full(len(scales), values["label"])
    logits = [np.float32(scales)[:, None] * logits_of(values, name) for name in NAMES]
    return np.array([[cpu.saliency_cotangent(z, labels, T, "plain")[0] for T in temperatures] for z in logits])


def test_explore_sliders_reach_what_the_paper_sets(tab):
    temperatures, scales = positions(tab)
    assert {1, 20} <= set(temperatures) and {0.05, 1, 20} <= set(scales)
    assert temperatures == sorted(set(temperatures)) and scales == sorted(set(scales))


def test_explore_float32_is_the_engines_bit_for_bit_given_the_exponentials(tab, values, monkeypatch):
    """The engine computes with the exponential that the page has: the float32 nearest to the true value."""
    found = np.array(everywhere(tab, "(z, k, T) => plain(z, k, T).gradient"))
    exact = np.exp
    monkeypatch.setattr(np, "exp", lambda x: exact(x.astype(np.float64)).astype(x.dtype))
    expected = by_the_engine(tab, values)
    assert expected.dtype == np.float32 and expected.shape == found.shape
    assert np.array_equal(found.astype(np.float32), found) and np.array_equal(found, expected)


def test_explore_float32_is_zero_where_the_engines_is(tab, values):
    """With NumPy's own exponential too, which is within two units in the last place, as the page says."""
    found, expected = np.array(everywhere(tab, "(z, k, T) => plain(z, k, T).gradient")), by_the_engine(tab, values)
    assert np.array_equal(found == 0, expected == 0)
    states = {(bool(g[..., values["label"]] == 0), bool((g == 0).all())) for g in expected.reshape(-1, 10)}
    assert states == {(False, False), (True, False), (True, True)}  # each is met
    temperatures, scales = positions(tab)
    for T in temperatures:
        x = np.concatenate([cpu._exponents(np.float32(scales)[:, None] * logits_of(values, name), T) for name in NAMES])
        np.testing.assert_array_max_ulp(np.exp(x), np.exp(x.astype(np.float64)).astype(np.float32), 2)


def decimals(numbers):
    """Numbers of the page, a sign and a decimal logarithm each, as Decimals."""
    return [n["sign"] * Decimal(10) ** Decimal(n["log10"] or 0) for n in numbers]


def assert_close(found, expected):
    """Decimals to a relative 1e-11, however small they are."""
    for a, b in zip(found, expected, strict=True):
        assert abs(a - b) <= abs(b) * Decimal("1e-11"), (a, b)


CASES = [(name, T, scale) for name in NAMES for T, scale in ((1, 1), (1, 5), (20, 20), (100, 0.05))]


@pytest.mark.parametrize(("name", "T", "scale"), CASES)
def test_explore_exact_is_that_of_many_digits(tab, values, name, T, scale):
    """Of p - y and of every form of equations (2) to (5), against minicnn.paper.proof1 in decimals."""
    k, rival = values["label"], (values["label"] + 1) % 10
    z = np.float32(scale) * logits_of(values, name) + 1000.0  # beyond what exp can take
    case = [float(v) for v in z], k, T
    found = tab.execute_script("return exact(...arguments)", *case)
    forms = tab.execute_script("return equations(arguments[0], arguments[1], arguments[3], arguments[2])", *case, rival)
    digits = 50 - int(found[k]["log10"])  # the corrected loss is ln(1 + a number of that size)
    with localcontext(prec=digits):
        x, t = np.array([Decimal(float(v)) for v in z]), Decimal(float(np.float32(T)))
        assert_close(decimals(found), proof1.cross_entropy_gradient(x, k, t))
        p = proof1.softmax_with_temperature(x, t)
        expected = {
            "2 printed": (p[k], p[rival], 1),
            "2 corrected": (p[k], p[rival], 1),
            "3 printed": (proof1.loss_printed(x, k, t),),
            "3 corrected": (proof1.loss_corrected(x, k, t),),
        }
        for form in ("4 printed", "4 corrected", "5 printed", "5 corrected"):
            equation, which = form.split()
            entries = getattr(proof1, f"derivative_{equation}_{which}")(x, k, t)
            total = getattr(proof1, f"sum_of_{equation}_{which}")(x, k, t) if which == "printed" else Decimal(0)
            assert abs(sum(entries) - total) < Decimal(10) ** (5 - digits)
            expected[form] = entries[k], entries[rival], total
        gradient = proof1.cross_entropy_gradient(x, k, t)
        expected["gradient of the loss"] = gradient[k], gradient[rival], 0
        assert set(forms) == set(expected)
        for form, numbers in forms.items():
            assert_close(decimals(numbers.values()), [Decimal(v) for v in expected[form]])
        lacking = forms["3 printed"]["loss"]["rest"]
        assert_close(decimals([lacking]), [proof1.saturation(x, k, t)])


@pytest.mark.parametrize("arithmetic", attacks.ARITHMETICS)
def test_explore_maps_are_the_engines(tab, values, shown, networks, arithmetic):
    """J^T g against the backward pass of a network with larger logits, before and after the true class is lost."""
    image, label = shown
    entries = (
        "plain(z, label, 1).gradient"
        if arithmetic == "plain"
        else "exact(z, label, 1).map((n) => n.sign * 10 ** n.log10)"
    )
    script = f"""const {{ logits, jacobian }} = data.networks.standard, z = scaledLogits(logits, arguments[0]);
    return saliency(jacobian, {entries}).map((value) => value * arguments[0]);"""
    for scale in (0.5, 1, 2):
        expected = saliency_maps(rescaled(networks["standard"], scale), image, label, arithmetic=arithmetic)
        truth = expected.maps.reshape(-1) * 10.0 ** expected.log10_scale[0]
        found = np.array(tab.execute_script(script, scale))
        if arithmetic == "plain" and np.abs(found).max() == 0:
            assert not truth.any()
        else:
            assert np.abs(found - truth).max() < 2e-3 * np.abs(truth).max()


def press(tab, selector, *keys):
    from selenium.webdriver.common.by import By

    element = tab.find_element(By.CSS_SELECTOR, selector)
    element.send_keys(*keys)
    return element


def click(tab, selector):
    tab.execute_script("document.querySelector(arguments[0]).click()", selector)


def row(tab, i):
    """What row i of the table shows: logit, p, float32, exact."""
    logit = float(tab.execute_script("return document.querySelectorAll('#rows input')[arguments[0]].value", i))
    return logit, *(read(text(tab, f"#rows tr:nth-child({i + 1}) td:nth-child({n})")) for n in (3, 4, 5))


def assert_rows(tab, values, name, T, scale):
    """The table shows what Python computes, to the digits that it shows."""
    z, k = np.float32(scale) * logits_of(values, name), values["label"]
    gradient = cpu.saliency_cotangent(z[None], np.array([k]), T, "plain")[0][0]
    exact = proof1.cross_entropy_gradient(z, k, float(np.float32(T)))
    e = np.exp((z - z.max()) / np.float32(T))
    p = e / cpu._sum_classes_as_tree(e[None])[0]
    for i in range(10):
        shown = row(tab, i)
        truth = logits_of(values, name)[i], p[i], gradient[i], exact[i]
        assert shown == pytest.approx(truth, rel=6e-4, abs=0), (i, shown, truth)


@pytest.mark.parametrize("name", NAMES)
def test_explore_sliders_move_by_keyboard_and_show_what_python_computes(tab, values, name):
    from selenium.webdriver.common.keys import Keys

    temperatures, scales = positions(tab)
    press(tab, "#source", *([Keys.DOWN] if name == "temperature" else []))
    assert (text(tab, "#T-value"), text(tab, "#scale-value")) == ("T = 1", "× 1")
    assert_rows(tab, values, name, 1, 1)
    scale = press(tab, "#scale", Keys.HOME)
    assert (text(tab, "#scale-value"), scale.get_attribute("aria-valuetext")) == ("× 0.05", "times 0.05")
    assert_rows(tab, values, name, 1, 0.05)
    press(tab, "#T", Keys.RIGHT, Keys.RIGHT)
    press(tab, "#scale", Keys.RIGHT)
    assert text(tab, "#T-value") == f"T = {temperatures[2]}" and text(tab, "#scale-value") == f"× {scales[1]}"
    assert_rows(tab, values, name, temperatures[2], scales[1])
    press(tab, "#T", Keys.END)
    assert_rows(tab, values, name, temperatures[-1], scales[1])


def test_explore_says_when_float32_shows_zero(tab, values):
    """The first scales at which the engine's entries are 0, in words; and what is said on either side of them."""
    _, scales = positions(tab)
    g = by_the_engine(tab, values)[0, 0]  # the standard network at T = 1
    lost, blank = (g[:, values["label"]] == 0).argmax(), (g == 0).all(axis=1).argmax()
    assert 0 < lost < blank
    moments = f"from scale {scales[lost]} on; all ten are from scale {scales[blank]} on."
    assert text(tab, "#moments").endswith(f"the entry of the true class is 0 in float32 {moments}")
    words = {
        lost - 1: ("Float32 keeps the direction.", "in float32 and"),
        lost: (
            "Float32 shows 0 for the true class: its probability rounds to 1.",
            "as large as all the others together",
        ),
        blank - 1: ("Float32 shows 0 for the true class: its probability rounds to 1.", "another way"),
        blank: ("Float32 shows 0 for all ten classes.", "The exact gradient is not 0."),
    }
    for i, (status, detail) in words.items():
        tab.execute_script("set({ scale: arguments[0] })", scales[i])
        assert text(tab, "#status") == status and detail in text(tab, "#detail")
    kinds = tab.execute_script("return [...document.querySelectorAll('#zones i')].map((zone) => zone.className)")
    assert kinds == ["right", "lost", "blank"]
    assert "blank" in text(tab, "#map-float32-words") and "largest entry about 10^−" in text(tab, "#map-exact-words")


def test_explore_buttons_take_the_papers_settings(tab):
    for T, scale, status in ((1, 20, "shows 0"), (20, 20, "keeps"), (1, 1, "keeps")):
        click(tab, f"button[data-temperature='{T}'][data-scale='{scale}']")
        assert (text(tab, "#T-value"), text(tab, "#scale-value")) == (f"T = {T}", f"× {scale}")
        assert status in text(tab, "#status")


def test_explore_counterexample(tab):
    """x = 0, T = 1: 9/100 and -1/100; both printed forms say 11/100 and +1/100."""
    k, x = 3, np.zeros(10)
    forms = {"corrected": proof1.derivative_5_corrected(x, k, 1), "printed": proof1.derivative_5_printed(x, k, 1)}
    for form, entries in forms.items():
        for which, value, sign in (("k", entries[k], ""), ("other", entries[0], "+" if form == "printed" else "")):
            shown = text(tab, f"[data-fraction='{form} {which}']")
            assert shown == f"{sign}{round(100 * value)}/100".replace("-", "−")
    click(tab, "#zero")
    assert tab.execute_script("return document.getElementById('source').value") == "own"
    expected = {"printed": (0.11, 0.01), "corrected": (0.09, -0.01)}
    for equation in "45":
        for form, pair in expected.items():
            place = f"[data-equation='{equation} {form}'] [data-value="
            assert (read(text(tab, f"{place}k]")), read(text(tab, f"{place}other]"))) == pair
    assert read(text(tab, "[data-equation='3 corrected'] dd")) == pytest.approx(np.log(10), rel=1e-3)
    assert [row(tab, i)[:2] for i in range(10)] == [(0, 0.1)] * 10


def test_explore_takes_logits_of_ones_own(tab, values):
    from selenium.webdriver.common.keys import Keys

    first = "#rows tr:first-child input"
    field = press(tab, first, Keys.CONTROL, "a")
    field.send_keys("2.5")
    z = logits_of(values, "standard").copy()
    z[0] = 2.5
    expected = cpu.saliency_cotangent(z[None], np.array([values["label"]]), 1, "plain")[0][0]
    assert row(tab, 0)[2] == pytest.approx(expected[0], rel=6e-4)
    assert tab.execute_script("return document.getElementById('source').value") == "own"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.BACKSPACE)
    assert field.get_attribute("aria-invalid") == "true"
    assert tab.execute_script("return settings.logits[0]") == 2.5  # the last number stays
    click(tab, "#reset")
    assert field.get_attribute("aria-invalid") == "false"
    assert_rows(tab, values, "standard", 1, 1)


def test_explore_attack_follows_its_slider(tab, values):
    from selenium.webdriver.common.keys import Keys

    def captions():
        return [text(tab, f"[data-arithmetic={a}] .image-words") for a in attacks.ARITHMETICS]

    found = values["attack"]["arithmetics"]
    assert text(tab, "[data-arithmetic=plain] .map-words").startswith("The map: all 784 entries are exactly 0.")
    for caption, attack in zip(captions(), found.values(), strict=True):
        moves, sees = len(attack["pixels"]), attack["decisions"][-1]
        outcome = (
            f"sees {sees}: the attack has succeeded"
            if attack["succeeded"]
            else f"still sees {sees}: the attack has failed"
        )
        assert caption == f"After {moves} pixel{'s' * (moves != 1)} the network {outcome}."
    press(tab, "#moves", Keys.HOME)
    assert captions() == [f"The network sees {values['label']}."] * 2
    press(tab, "#moves", Keys.RIGHT)
    assert text(tab, "#moves-value") == "1 pixel"
    # The first pixel of a blank map is the first of the image, which is then neither white nor black.
    script = """const canvas = document.querySelector("[data-arithmetic=plain] .image");
    return [...canvas.getContext("2d").getImageData(1, 1, 1, 1).data].slice(0, 3);"""
    assert len(set(tab.execute_script(script))) > 1


def test_explore_says_where_there_is_nothing_to_attack(tab, values, tmp_path):
    """An image that is misclassified from the start, as none of a trained network need be."""
    network, image = paper_cnn(seed=1), data.load("digits").test_images[:1]
    label = (predict(network, image).argmax(axis=1) + 1) % 10
    found = explore.embed(
        dict.fromkeys(NAMES, network), common.Sample(image, label, np.array([0]), 0), attacks.Setting()
    )
    explore.write(tmp_path / "page.html", values | found)
    tab.get((tmp_path / "page.html").as_uri())
    for arithmetic in attacks.ARITHMETICS:
        words = f"The network sees {label[0] - 1 if label[0] else 9}, not {label[0]}: there is nothing to attack."
        assert text(tab, f"[data-arithmetic={arithmetic}] .image-words") == words
    assert text(tab, "#status") == "Float32 keeps the direction."


def test_explore_map_says_its_sign_by_lightness(tab):
    """In greyscale too: what lowers the loss is darker than 0, what raises it brighter."""
    script = """drawMap(document.getElementById("map-exact"), [-1, 0, 1].concat(Array(781).fill(0)));
    const row = document.getElementById("map-exact").getContext("2d").getImageData(0, 6, 36, 1).data;
    return [6, 18, 30].map((column) => [...row.slice(4 * column, 4 * column + 4)]);"""
    lowers, zero, raises = (0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in tab.execute_script(script))
    assert lowers + 60 < zero < raises - 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_explore_fits_the_window(tab, width, scheme):
    """Nothing scrolls sideways, whatever the sliders say; text and ground are far apart in lightness."""
    emulate(tab, width, scheme)
    for source, scale in (("standard", 1), ("temperature", 20)):
        tab.execute_script("takeNetwork(arguments[0]); set({ scale: arguments[1] })", source, scale)
        script = """const { clientWidth, scrollWidth } = document.documentElement;
        return [scrollWidth, ...[...document.querySelectorAll("body *:not(thead *)")]
          .filter((element) => element.getBoundingClientRect().right > clientWidth + 1).map((e) => e.outerHTML)];"""
        assert tab.execute_script(script) == tab.execute_script("return [document.documentElement.clientWidth]")
        wide = "return [...document.querySelectorAll('.math')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
        assert tab.execute_script(wide) == 0
    script = "const { color, backgroundColor } = getComputedStyle(document.body); return [color, backgroundColor]"
    ink, paper = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in tab.execute_script(script))
    assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 450


def test_explore_has_names_for_what_is_not_text(tab):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    controls = tab.find_elements(By.CSS_SELECTOR, "input, select, button")
    canvases = tab.find_elements(By.CSS_SELECTOR, "canvas")
    names = [element.accessible_name for element in [*controls, *canvases]]
    assert len(controls) == 3 + 10 + 1 + 5 and len(canvases) == 6 and all(names)
    assert tab.execute_script("return document.querySelectorAll('[aria-live=polite]').length") == 3
    reached = []
    for _ in range(len(controls) + 1):  # and the summary of the details
        tab.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(tab.switch_to.active_element)
    assert set(controls) <= set(reached)
    levels = [int(h.tag_name[1]) for h in tab.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_explore_moves_nothing_by_itself(tab):
    source = tab.page_source.partition('<script type="application/json"')[0]
    assert not re.search(r"transition|animation|scroll-behavior", source)
    assert tab.execute_script("return document.getAnimations().length") == 0


def test_explore_without_javascript(driver, folder):
    from selenium.webdriver.common.by import By

    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        emulate(driver, 360)
        driver.get((folder / "explore.html").as_uri())
        shown = driver.find_element(By.TAG_NAME, "main").text
        assert "JavaScript, which is off" in shown and "9/100" in shown and "11/100" in shown
        assert len(driver.find_elements(By.TAG_NAME, "math")) == 9
        assert not any(e.is_displayed() for e in driver.find_elements(By.CSS_SELECTOR, "input, button, canvas"))
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
