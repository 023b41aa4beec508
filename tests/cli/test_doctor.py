import json

import pytest

from mmdiff.cli import doctor as doctor_module
from mmdiff.cli.doctor import doctor, examine


@pytest.fixture
def few_packages(monkeypatch):
    packages = (("numpy", "numpy", ""), ("no-such-thing", "no_such_thing", "vision"))
    monkeypatch.setattr(doctor_module, "PACKAGES", packages)


@pytest.mark.usefixtures("few_packages")
def test_json_rows(capsys):
    assert doctor(json=True) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["numpy"]["state"] == "ok"
    assert rows["numpy"]["version"]
    assert rows["no-such-thing"]["state"] == "missing"
    assert rows["no-such-thing"]["fix"] == "pip install 'mmdiff[vision]'"
    assert "GFLOP/s" in rows["machine"]["note"]


@pytest.mark.usefixtures("few_packages")
def test_the_table_ends_with_the_fixes(capsys):
    doctor()
    assert capsys.readouterr().out.endswith("no-such-thing: pip install 'mmdiff[vision]'\n")


def test_a_missing_core_package_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(doctor_module, "PACKAGES", (("torch", "no_such_thing", ""),))
    assert doctor(json=True) == 2
    assert '"missing"' in capsys.readouterr().out


def test_a_broken_package_shows_the_reason(tmp_path, monkeypatch):
    (tmp_path / "ill_package.py").write_text("raise OSError('no library')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = examine("ill-package", "ill_package", "vision")
    assert (finding.state, finding.note) == ("broken", "no library")
    assert finding.fix == "pip install --force-reinstall ill-package"
