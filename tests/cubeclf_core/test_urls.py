"""Volumes by URL: over HTTP from a server of this machine, and from fsspec's memory."""

import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
import zarr
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.brains import load_brains
from cubeclf_core.cells import Cells, write_cells
from cubeclf_core.errors import BrainsFileError, VolumeError
from cubeclf_core.locations import is_url, locate, on_disk
from cubeclf_core.volumes import Volume, open_volume, stem

UM = (5.0, 2.0, 2.0)
ARRAY = np.random.default_rng(0).integers(1, 999, (2, 9, 40, 30)).astype("uint16")
HALF = ARRAY[..., ::2, ::2]


def whole(volume: Volume) -> np.ndarray:
    return volume.read((0, 0, 0), volume.shape)


def write_ome(store: Any, zarr_format: int, *, consolidated: bool = False) -> None:
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    datasets = []
    for i, (array, yx) in enumerate(((ARRAY, 2), (HALF, 4))):
        group.create_array(str(i), data=array, chunks=(1, 4, 40, 30), fill_value=0)
        scale = {"type": "scale", "scale": [1, 5, yx, yx]}
        datasets.append({"path": str(i), "coordinateTransformations": [scale]})
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    image = {"axes": axes, "datasets": datasets}
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    if consolidated:
        zarr.consolidate_metadata(group.store)


@dataclass
class Site:
    """A web server of a folder; it refuses paths that hold something forbidden."""

    folder: Path
    url: str
    forbidden: set[str] = field(default_factory=set)
    ranges: bool = True


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    class Handler(SimpleHTTPRequestHandler):
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if any(part in self.path for part in here.forbidden):
                self.send_error(403)
            elif wanted and here.ranges:
                stored = Path(self.translate_path(self.path)).read_bytes()
                if wanted[1]:
                    part = stored[int(wanted[1]) : int(wanted[2] or len(stored)) + 1]
                else:
                    part = stored[-int(wanted[2]) :]
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part)
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        here = Site(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield here
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [False, True])
# Zarr says so when it consolidates v3, which writers do all the same.
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_an_ome_zarr_over_http(site: Site, zarr_format: int, consolidated: bool) -> None:
    write_ome(site.folder / "brain.ome.zarr", zarr_format, consolidated=consolidated)
    for url in (f"{site.url}/brain.ome.zarr", f"{site.url}/brain.ome.zarr/"):
        volume = open_volume(url)
        assert (volume.name, volume.voxel_size_um) == ("brain", UM)
        assert [level.voxel_size_um for level in volume.levels] == [UM, (5, 4, 4)]
        np.testing.assert_array_equal(whole(volume), ARRAY)
        np.testing.assert_array_equal(whole(volume.coarser[0]), HALF)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_zarr_over_http_and_its_array_within_a_group(site: Site, zarr_format: int) -> None:
    zarr.create_array(site.folder / "a.zarr", data=ARRAY, zarr_format=zarr_format)
    write_ome(site.folder / "b.zarr", zarr_format)
    for name in ("a.zarr", "b.zarr/0"):
        volume = open_volume(f"{site.url}/{name}", voxel_size_um=UM)
        np.testing.assert_array_equal(whole(volume), ARRAY)


def test_a_sharded_zarr_over_http(site: Site) -> None:
    zarr.create_array(
        site.folder / "a.zarr", data=ARRAY, chunks=(1, 3, 8, 8), shards=(1, 9, 16, 16)
    )
    volume = open_volume(f"{site.url}/a.zarr", voxel_size_um=UM)
    assert volume.chunk_shape == (3, 8, 8)
    np.testing.assert_array_equal(whole(volume), ARRAY)
    np.testing.assert_array_equal(volume.read((2, 3, 4), (7, 12, 9)), ARRAY[:, 2:7, 3:12, 4:9])
    site.ranges = False  # a server that sends the whole shard instead of the part asked for
    with pytest.raises(VolumeError, match="cannot be decoded"):
        whole(open_volume(f"{site.url}/a.zarr", voxel_size_um=UM))


def test_many_threads_read_over_http_what_one_reads(site: Site) -> None:
    write_ome(site.folder / "a.zarr", 3)
    volume = open_volume(f"{site.url}/a.zarr")
    corners = np.random.default_rng(1).integers(0, (5, 30, 20), (40, 3))
    with ThreadPoolExecutor(8) as pool:
        boxes = list(pool.map(lambda c: volume.read(c, c + np.array((4, 10, 10))), corners))
    for (z, y, x), box in zip(corners, boxes, strict=True):
        np.testing.assert_array_equal(box, ARRAY[:, z : z + 4, y : y + 10, x : x + 10])


def test_signal_and_background_may_lie_in_different_places(site: Site) -> None:
    zarr.create_array(site.folder / "signal.zarr", data=ARRAY[0])
    zarr.create_array(site.folder / "background.zarr", data=ARRAY[1])
    volume = open_volume(
        f"{site.url}/signal.zarr", background=site.folder / "background.zarr", voxel_size_um=UM
    )
    np.testing.assert_array_equal(whole(volume), ARRAY)


def test_what_is_not_there_is_said_in_one_line(site: Site) -> None:
    zarr.open_group(site.folder / "group.zarr", mode="w").create_array("0", data=ARRAY)
    (site.folder / "broken.zarr").mkdir()
    (site.folder / "broken.zarr" / "zarr.json").write_text("<html>\nno such page\n</html>")
    write_ome(site.folder / "secret.zarr", 2)
    site.forbidden.add("secret.zarr")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for url, says in {
            f"{site.url}/none.zarr": "there is no zarr at",
            f"{site.url}/group.zarr": "without OME-Zarr multiscales",
            f"{site.url}/broken.zarr": "cannot be opened as a zarr",
            f"{site.url}/secret.zarr": "cannot be opened as a zarr .*403",
            f"{nobody}/a.zarr": "cannot be opened as a zarr .*connect",
            "parrot://host/a.zarr": "Protocol not known: parrot",
            f"memory://{uuid.uuid4()}/a.zarr": "there is no zarr at",
            f"{site.url}/brain.tif": "there is no zarr at .*; expected an OME-Zarr or a zarr array",
        }.items():
            with pytest.raises(VolumeError, match=says) as error:
                open_volume(url, voxel_size_um=UM)
            assert url in str(error.value)
            assert "\n" not in str(error.value)


def test_a_chunk_that_is_missing_truncated_or_refused(site: Site) -> None:
    write_ome(site.folder / "a.zarr", 3)
    chunks = site.folder / "a.zarr" / "0" / "c" / "0"
    volume = open_volume(f"{site.url}/a.zarr")
    (chunks / "0" / "0" / "0").unlink()
    expected = ARRAY[:1].copy()
    expected[:, :4] = 0
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape, 1), expected)

    chunk = chunks / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    site.forbidden.add("/0/c/0/2")
    for z in (4, 8):
        with pytest.raises(VolumeError, match=r"a\.zarr: a chunk within"):
            volume.read((z, 0, 0), (z + 1, 40, 30), 1)


def test_a_server_that_refuses_later_is_a_volume_error(site: Site) -> None:
    write_ome(site.folder / "a.zarr", 3)
    volume = open_volume(f"{site.url}/a.zarr")
    site.forbidden.add("")
    with pytest.raises(VolumeError, match="403"):
        whole(volume)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_in_memory_by_url(zarr_format: int, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}/brain.ome.zarr"
    write_ome(url, zarr_format)  # as zarr writes it
    np.testing.assert_array_equal(whole(open_volume(url)), ARRAY)
    assert open_volume(url).name == "brain"

    write_ome(tmp_path / "a.zarr", zarr_format)  # as fsspec does
    url = f"memory://{uuid.uuid4()}/a.zarr"
    fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), url, recursive=True)
    np.testing.assert_array_equal(whole(open_volume(url)), ARRAY)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "my brain.zarr", data=ARRAY)
    url = (tmp_path / "my brain.zarr").as_uri()
    (brain,) = load_brains([url], voxel_size_um=UM)
    assert (brain.name, brain.paths) == ("my brain", (tmp_path / "my brain.zarr",))
    np.testing.assert_array_equal(whole(brain.volume), ARRAY)


def test_a_brains_file_may_name_urls(site: Site) -> None:
    write_ome(site.folder / "both.ome.zarr", 3)
    zarr.create_array(site.folder / "signal.zarr", data=ARRAY[0])
    write_cells(site.folder / "cells.xml", Cells(np.array([[1.0, 2, 3]]), np.array([2])))
    file = site.folder / "brains.yaml"
    both, signal = f"{site.url}/both.ome.zarr", "signal.zarr"
    entries: list[dict[str, Any]] = [
        {"name": "one", "signal": both, "channels": [1], "cells": "cells.xml"},
        {"name": "two", "signal": signal, "background": f"{site.url}/signal.zarr"},
    ]
    file.write_text(yaml.safe_dump(entries))
    one, two = load_brains([file], voxel_size_um=UM)
    np.testing.assert_array_equal(whole(one.volume), ARRAY[1:])
    np.testing.assert_array_equal(whole(two.volume), ARRAY[[0, 0]])
    assert one.paths == (site.folder / "cells.xml", file)  # only what lies on this machine
    assert two.paths == (site.folder / "signal.zarr", file)
    assert (one.signal, two.signal) == (both, str((site.folder / signal).resolve()))
    (three,) = load_brains([both])
    assert (three.name, three.paths, three.signal) == ("both", (), both)

    file.write_text(yaml.safe_dump([entries[0] | {"cells": f"{site.url}/cells.xml"}]))
    with pytest.raises(BrainsFileError, match=r"cells is 'http.*expected a path"):
        load_brains([file])


def test_a_command_takes_a_url_as_it_is(command: Callable[..., Any]) -> None:
    url = "https://example.org/brains//mouse.ome.zarr"
    done = command(
        "cubeclf-classify", url, "--classifier=c", "--cells=c.xml", "--out=o", "--print-config"
    )
    assert (done.code, yaml.safe_load(done.out)["brain"]) == (0, url)


names = st.text("abc-_. 0", min_size=1).filter(lambda name: name.strip(". "))


@given(st.sampled_from(["https://host", "s3://bucket", "memory:/", "zip::https://host"]), names)
def test_a_url_stays_what_it_is(host: str, name: str) -> None:
    url = f"{host}/a//{name}.ome.zarr"
    assert is_url(url)
    assert locate(url) == locate(url, Path("folder")) == url
    assert stem(url) == name
    assert on_disk(url, name, None) == (Path(name),)
    assert not is_url(name)
    assert locate(name, Path("folder")) == Path("folder") / name
