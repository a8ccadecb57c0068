"""What a backend has stored outlives closing, loading, killing and making anew; damage is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.base import Backend
from cbir_faiss.errors import CorruptCollection, Unsupported
from cbir_faiss.testing._backends import PAYLOADS, BackendTests, Case, chosen_options, ids_of, refused
from cbir_faiss.testing._contract import sample
from cbir_faiss.types import Codes, Ids


class Lasting(BackendTests):
    """Storage of an engine's own, and files that ``save`` writes."""

    def test_persistence(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: after close and open, or save and restore: same answers, payload and count."""
        if filled.capabilities.persist == "refused":
            with pytest.raises(Unsupported):
                filled.save(tmp_path / "saved")
            return
        queries, ids = self.data(case, 4, seed=1), self.ids()
        if filled.capabilities.delete != "refused":
            filled.delete(ids[:3])
            filled.flush()
        before, count = self.find(filled, queries), filled.count()
        again = self.reopen(filled, tmp_path, case)
        assert (again.dim, again.kind, again.metric) == (self.width(case), *case)
        assert again.count() == count
        np.testing.assert_allclose(self.find(again, queries).distances, before.distances, rtol=1e-4, atol=1e-4)
        assert again.payload(ids[3:8]) == PAYLOADS[3:8]
        if again.capabilities.filter != "refused":
            assert ids_of(self.find(again, queries, 9, {"label": "žába"})) == {int(ids[3])}
        again.close()

    def test_changes_after_loading(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: what was loaded is as alive as what was built; ids must not collide."""
        if filled.capabilities.persist == "refused":
            pytest.skip("keeps nothing")
        ids, data = self.ids(), self.data(case)
        again = self.reopen(filled, tmp_path, case)
        new = self.data(case, 5, seed=7)
        again.upsert(np.concatenate([ids[:2], [10**6, 10**6 + 1, 10**6 + 2]]), new, [{"label": "new"}] * 5)
        again.flush()
        data = np.concatenate([data, new[2:]])
        data[:2] = new[:2]
        ids = np.concatenate([ids, [10**6, 10**6 + 1, 10**6 + 2]])
        truth = self.truth(again, case, new, data)
        if again.capabilities.delete != "refused":
            again.delete(ids[4:6])
            again.flush()
            truth[:, 4:6] = np.inf
        self.agree(self.find(again, new), truth, ids)
        assert again.payload(ids[:2]) == [{"label": "new"}] * 2
        third = self.reopen(again, tmp_path / "third", case) if not again.own_storage else again
        self.agree(self.find(third, new), truth, ids)
        third.close()

    def test_mapped_files_are_read_only(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: changing a mapped FAISS index kills the process; refuse it before."""
        if filled.own_storage or filled.capabilities.persist == "refused":
            pytest.skip("writes no files")
        queries, ids = self.data(case, 4, seed=1), self.ids()
        before = self.find(filled, queries)
        filled.save(tmp_path / "saved")
        mapped = self.make(tmp_path, case)
        mapped.restore(tmp_path / "saved", mmap=True)
        np.testing.assert_allclose(self.find(mapped, queries).distances, before.distances, rtol=1e-4, atol=1e-4)
        assert mapped.payload(ids[:4]) == PAYLOADS[:4]
        with pytest.raises(Unsupported, match="read-only"):
            mapped.upsert(ids[:1], self.data(case)[:1])
        if mapped.capabilities.delete != "refused":
            self.hides_or_refuses(mapped, ids[:1], queries)
        mapped.close()
        again = self.make(tmp_path, case)
        again.restore(tmp_path / "saved")  # checks the digests: no file was touched
        assert again.count() == filled.count()
        again.close()

    def hides_or_refuses(self, mapped: Backend, ids: Ids, queries: Codes) -> None:
        """Deleting from a mapped index is refused, or hides the items from this process."""
        with suppress(Unsupported):
            mapped.delete(ids)
            assert not ids_of(self.find(mapped, queries, mapped.count() + 1)) & set(ids.tolist())

    def test_damaged_files_are_refused(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: write a size and a digest of every file, and check them before the engine reads it."""
        if filled.own_storage or filled.capabilities.persist == "refused":
            pytest.skip("writes no files")
        filled.save(tmp_path / "saved")
        for name in sorted(file.name for file in (tmp_path / "saved").iterdir()):
            for damage in (_cut, _alter, Path.unlink):
                broken = tmp_path / "broken"
                shutil.copytree(tmp_path / "saved", broken)
                damage(broken / name)
                backend = self.make(tmp_path, case)
                with pytest.raises(CorruptCollection):
                    backend.restore(broken)
                backend.close()
                shutil.rmtree(broken)
        backend = self.make(tmp_path, case)
        with pytest.raises(CorruptCollection):
            backend.restore(tmp_path / "nowhere")
        backend.close()

    def test_what_is_flushed_outlives_a_kill(self, tmp_path: Path) -> None:
        """Troubleshooting: ``flush`` commits and syncs; nothing may wait for ``close``. The plugin can be imported."""
        case = self.all_cases()[0]  # one, because starting the process takes longer than everything else
        backend = self.make(tmp_path, case)
        backend.close()
        if not self.keeps(backend):
            pytest.skip("keeps nothing by itself")
        ids, data = self.ids(), self.data(case)
        payload = [{"n": n} for n in range(self.items)]
        np.savez(tmp_path / "content.npz", ids=ids, vectors=data)
        job = {
            **{"module": self.plugin.__module__, "plugin": self.plugin.__name__, "options": chosen_options(backend)},
            **{"width": self.width(case), "kind": case[0], "payload": payload},
            "content": str(tmp_path / "content.npz"),
        }
        _killed_when_flushed(job)
        again = self.make(tmp_path, case)
        assert again.count() == self.items
        assert again.payload(ids) == payload
        self.agree(self.find(again, data[:3]), self.truth(again, case, data[:3], data), ids)
        again.close()

    def test_create_loses_nothing(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: ``create`` where items are stored is an error, unless the options say ``overwrite``."""
        if not self.keeps(filled):
            pytest.skip("keeps nothing by itself")
        again = self.reopen(filled, tmp_path, case)
        for width in (self.width(case), 2 * self.width(case)):
            assert refused(partial(again.create, width, case[0])), "what is there was made anew"
            assert (again.dim, again.count()) == (self.width(case), self.items)
            assert again.payload(self.ids()[: len(PAYLOADS)]) == PAYLOADS
        again.close()

    def test_overwrite(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: ``overwrite: true`` empties when it is made anew, and not when it is opened."""
        if not self.keeps(filled) or "overwrite" not in self.plugin.Options.model_fields:
            pytest.skip("has no option 'overwrite'")
        filled.close()
        again = self.twin(filled, overwrite=True)
        assert again.count() == self.items
        again.create(2 * self.width(case), case[0])
        assert (again.dim, again.count()) == (2 * self.width(case), 0)
        data = sample(case[0], 4, 2 * self.width(case))
        again.upsert(np.arange(4), data)
        again.flush()
        again.close()
        third = self.make(tmp_path, case)
        assert (third.dim, third.count()) == (2 * self.width(case), 4)
        assert third.payload(np.arange(4)) == [{}] * 4
        third.close()

    def test_remove(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: nothing is left of a removed table, and removing what is not there is no error."""
        if not self.keeps(filled):
            pytest.skip("keeps nothing by itself")
        filled.remove()
        filled.remove()
        filled.close()
        again = self.make(tmp_path, case)
        assert (again.dim, again.count()) == (None, 0)
        self.create(again, case)
        assert again.count() == 0
        again.close()


def _killed_when_flushed(job: dict[str, Any]) -> None:
    """Run ``job`` in a process of its own, and kill that as soon as it has flushed."""
    command = [sys.executable, "-m", f"{__package__}._writer"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdin.write(json.dumps(job) + "\n")
        writer.stdin.flush()
        flushed = any(line.strip() == "flushed" for line in writer.stdout)
        writer.kill()
        assert flushed, writer.stderr.read()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))
