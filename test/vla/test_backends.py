"""Back ends: found by name, held to the protocol, used through it alone."""

import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from rlt_ros.core.joining import Prefix
from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.vla import VLAError, load
from rlt_ros.vla.backend import BUILT_IN, find, load_backend
from rlt_ros.vla.conformance import CHECKS, NotConformant, conformance, main
from rlt_ros.vla.frozen import CHECKPOINTS, FrozenVLA
from rlt_ros.vla.traced import TracedVLA

TEMPLATE = Path(__file__).resolve().parents[2] / "docs" / "templates" / "my_backend.py"
SETTINGS = {"backend": "my_vla", "cameras": ["wrist", "base"], "proprio_dim": 14, "action_dim": 4}


@pytest.fixture
def template():
    """The documents' template as a module."""
    spec = importlib.util.spec_from_file_location("my_backend", TEMPLATE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend(template, tmp_path):
    torch.manual_seed(0)
    return template.load(tmp_path, {name: value for name, value in SETTINGS.items() if name != "backend"})


# --- found -----------------------------------------------------------------------------------------------------------


def test_a_back_end_of_another_package_is_found_by_its_entry_point(other_vla):
    loaded = load(other_vla)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it offers no tracing, and that is nobody's fault
        vla = TracedVLA(loaded, joins=True)
    assert not vla.traced
    pictures = {name: np.full((64, 64, 3), 90, np.uint8) for name in ("wrist", "base")}
    reference, token = vla.infer(pictures, np.zeros(14, np.float32))
    assert reference.shape == (50, 4) and token.shape == (32,)
    np.testing.assert_allclose(vla.tokens([(pictures, np.zeros(14))] * 2)[0], token, atol=1e-5)
    with pytest.raises(VLAError, match="MyBackend cannot go on from the chunk before: set join to none or blend"):
        vla.infer(pictures, np.zeros(14, np.float32), Prefix(np.zeros((10, 4), np.float32), 5))


def test_an_unknown_back_end_is_an_error_that_lists_the_installed_ones(other_vla):
    (other_vla / "rlt.json").write_text(json.dumps(SETTINGS | {"backend": "openvla"}))
    with pytest.raises(VLAError, match="'openvla' is not installed; there are: .*lerobot_pi0.*my_vla.*pi0"):
        load_backend(other_vla)


def test_two_packages_of_the_same_name_are_an_error(other_vla, install):
    install("other_package", {"my_vla": "other.module:load"})
    with pytest.raises(VLAError, match="offered twice: my_vla_package.my_backend:load, other.module:load"):
        load_backend(other_vla)


def test_what_ships_cannot_be_replaced(install):
    install("other_package", {"pi0": "other.module:load"})
    assert find("pi0").value == BUILT_IN["pi0"]


def test_a_back_end_that_cannot_be_imported_is_named(other_vla, install):
    install("other_package", {"broken": "no_such_module:load"})
    (other_vla / "rlt.json").write_text(json.dumps({"backend": "broken"}))
    with pytest.raises(VLAError, match="back end 'broken': no_such_module:load cannot be imported"):
        load_backend(other_vla)


def test_a_back_end_that_lacks_something_is_named(other_vla, tmp_path):
    (module,) = tmp_path.glob("site-of-*/my_vla_package/my_backend.py")
    module.write_text(module.read_text().replace("    guided = False", "    pass"))
    with pytest.raises(VLAError, match="back end 'my_vla': MyBackend lacks guided"):
        load_backend(other_vla)


def test_nothing_is_read_where_the_mask_is_false(backend):
    torch.manual_seed(0)
    token = RLToken(TokenConfig(embedding_dim=32, tokens=32)).eval()
    pictures = {name: np.full((64, 64, 3), 90, np.uint8) for name in ("wrist", "base")}
    look, values = backend.look, []
    for filler in (0.0, 5.0):

        def partly(images, filler=filler):
            embeddings, mask, own = look(images)
            mask[:, 16:] = False
            return torch.where(mask[..., None], embeddings, filler), mask, own

        backend.look = partly
        vla = FrozenVLA(backend, token)
        values += [vla.infer(pictures, np.zeros(14, np.float32))[1], vla.tokens([(pictures, np.zeros(14))])[0]]
    backend.look = look
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], atol=1e-5)
    whole = FrozenVLA(backend, token).infer(pictures, np.zeros(14, np.float32))[1]
    assert np.abs(whole - values[0]).max() > 1e-3


@pytest.mark.parametrize("content", ["[1, 2]", "{damaged"])
def test_settings_that_are_none_are_named(tmp_path, content):
    (tmp_path / "rlt.json").write_text(content)
    with pytest.raises(VLAError, match="rlt.json"):
        load_backend(tmp_path)


def test_the_shipped_checkpoint_may_name_its_back_end_or_not(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINTS / "ethernet", folder)
    settings = json.loads((folder / "rlt.json").read_text())
    assert "backend" not in settings  # as older versions wrote it
    (folder / "rlt.json").write_text(json.dumps(settings | {"backend": "pi0"}))
    assert load(folder).camera_names == load("ethernet").camera_names


def test_looking_for_back_ends_imports_no_model():
    code = ("import sys; from rlt_ros.vla.backend import installed; assert len(installed()) > 2;"
            " sys.exit('transformers' in sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# --- held to the protocol --------------------------------------------------------------------------------------------


def test_the_shipped_one_conforms():
    assert len(conformance(load_backend(CHECKPOINTS / "ethernet"))) == len(CHECKS)


def test_the_template_conforms(backend):
    conformance(backend)


def test_pi0_of_lerobot_conforms(pi0_folder):
    conformance(load_backend(pi0_folder.folder))
    pi0_folder.change("rlt.json", action=[2, 0, 1], action_scale=[0.5, 1.0, -1.0])
    conformance(load_backend(pi0_folder.folder))


@pytest.mark.parametrize("kind", ["pi0", "smolvla"])
def test_in_bfloat16_they_conform_within_its_precision(pi0_folder, smolvla_folder, kind):
    folder = {"pi0": pi0_folder, "smolvla": smolvla_folder}[kind]
    folder.change("rlt.json", dtype="bfloat16")
    conformance(load_backend(folder.folder), tolerance=0.1)


def test_smolvla_conforms(smolvla_folder):
    conformance(load_backend(smolvla_folder.folder))


def test_the_command_says_what_was_asked_and_what_is_wrong(other_vla, capsys):
    assert main([str(other_vla)]) == 0
    assert capsys.readouterr().out.count("ok  ") == len(CHECKS)
    assert main([str(other_vla / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main([]) == 2


def spoiled(backend, method: str, change):
    """The back end with what a method gives changed."""
    original = getattr(backend, method)
    setattr(backend, method, lambda *args, **kwargs: change(original(*args, **kwargs)))


def no_guide(chunk):
    return lambda own, proprio, generator, guide=None: chunk(own, proprio, generator)


WRONG = {
    "float64": (lambda b: spoiled(b, "look", lambda r: (r[0].double(), *r[1:])), "embeddings: got torch.float64"),
    "an embedding too few": (lambda b: spoiled(b, "look", lambda r: (r[0][:, 1:], *r[1:])), "embeddings: got"),
    "not finite": (lambda b: spoiled(b, "look", lambda r: (r[0] / 0, *r[1:])), "embeddings: not finite"),
    "hidden, not zero": (lambda b: spoiled(b, "look", lambda r: (r[0], r[1] & (torch.arange(32) > 3), r[2])), "zero"),
    "mask of numbers": (lambda b: spoiled(b, "look", lambda r: (r[0], r[1].float(), r[2])), "mask: got"),
    "blind": (lambda b: spoiled(b, "look", lambda r: (torch.ones_like(r[0]), *r[1:])), "camera 'wrist'"),
    "mixed in the batch": (
        lambda b: spoiled(b, "look", lambda r: (r[0] + r[0].mean((0, 1)), *r[1:])), "A batch gives what",
    ),
    "out of range": (lambda b: spoiled(b, "chunk", lambda r: r * 30), r"outside of \[-1, 1\]"),
    "a chunk of NaN": (lambda b: spoiled(b, "chunk", lambda r: r + torch.nan), "chunk: not finite"),
    "too short": (lambda b: spoiled(b, "chunk", lambda r: r[:, :-1]), "chunk: got"),
    "noise of its own": (lambda b: spoiled(b, "chunk", lambda r: r * torch.rand(()).item()), "same generator"),
    "a guide ignored": (lambda b: setattr(b, "chunk", no_guide(b.chunk)), "took a guide"),
    "a guide promised": (
        lambda b: (setattr(b, "guided", True), setattr(b, "chunk", no_guide(b.chunk))), "from the guide",
    ),
    "size missing": (lambda b: setattr(b, "image_size", None), "image_size: got None"),
    "the same camera twice": (lambda b: setattr(b, "cameras", ["base", "base"]), "expected different names"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_back_end_that_does_not_conform_is_told_why(backend, name):
    spoil, says = WRONG[name]
    spoil(backend)
    with pytest.raises(NotConformant, match=says):
        conformance(backend)


def test_any_number_of_cameras_is_not_taken(backend, template):
    """Without its check, the template would make something of any number."""
    look = template.MyBackend.look

    def lenient(images):
        cameras, tokens = backend.cameras, backend.image_tokens
        backend.cameras, backend.image_tokens = ["any"] * images.shape[1], tokens // len(cameras) * images.shape[1]
        try:
            return look(backend, images)
        finally:
            backend.cameras, backend.image_tokens = cameras, tokens

    backend.look = lenient
    with pytest.raises(NotConformant, match="one camera too many was not refused"):
        conformance(backend)


def test_a_tolerance_that_is_no_number_is_named(capsys):
    assert main([str(CHECKPOINTS / "ethernet"), "abc"]) == 2
    assert "TOLERANCE is 'abc', expected a number" in capsys.readouterr().err
