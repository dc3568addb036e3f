"""Images on the web: off unless asked for, fetched within bounds, and their failures those of any sample."""

import http.server
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sonde.engine import ImageUrl, Sample, extract, remote
from sonde.engine.config import DataSection
from sonde.engine.dataset import load_dataset
from sonde.engine.manifest import read_manifest
from sonde.engine.sample import Dataset
from sonde.errors import InputError

from .runs import configuration, values


class Site(http.server.ThreadingHTTPServer):
    """A site of pictures, and of much that goes wrong; `asked` are the paths that were asked for."""

    daemon_threads = True

    def __init__(self, pictures: list[Path]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.pictures = {f"/{i}.png": picture.read_bytes() for i, picture in enumerate(pictures)}
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.server.asked
        asked.append(self.path)
        picture = next(iter(self.server.pictures.values()))
        if self.path.startswith("/to/"):
            self.say(302, location=self.path.removeprefix("/to/"))
        elif self.path == "/busy.png" and asked.count(self.path) < 3:
            self.say(503)
        elif self.path == "/half.png" and asked.count(self.path) < 2:
            self.say(200, picture[:-9], length=len(picture))
        elif self.path == "/page.png":
            self.say(200, b"<html>no picture</html>")
        elif self.path == "/huge.png":
            self.say(200, b"", length=remote.MAX_BYTES + 1)
        elif self.path == "/endless.png":
            self.say(200, b"x" * (remote.MAX_BYTES + 1), length=None)
        elif self.path in ("/busy.png", "/half.png", "/a%20b.png"):
            self.say(200, picture)
        elif self.path in self.server.pictures:
            self.say(200, self.server.pictures[self.path])
        else:
            self.say(404)

    def say(self, code: int, body: bytes = b"", *, length: int | None = -1, location: str = "") -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            # Whoever asked has heard enough.
            self.close_connection = True


@pytest.fixture
def site(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.01))
    monkeypatch.setattr(remote, "TIMEOUT_S", 10.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site(pictures) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def manifest(folder: Path, *urls: str) -> Path:
    path = folder / "m.csv"
    path.write_text("id,prompt,image\n" + "".join(f"s{i},a star,{url}\n" for i, url in enumerate(urls)))
    return path


def test_a_url_is_refused_unless_the_configuration_lets_it_through(tmp_path: Path) -> None:
    url = "https://example.org/a%20b.png?x=1"
    path = manifest(tmp_path, url)
    with pytest.raises(InputError, match=r"m\.csv:2: image 'https://.*' is a URL: .*set data\.remote_images = true"):
        load_dataset(DataSection(manifest=path))
    data = load_dataset(DataSection(manifest=path, remote_images=True))
    assert data.samples[0].images == (ImageUrl(url),)
    with pytest.raises(InputError, match=r"'s0' has an image at https://.*only where data\.remote_images = true"):
        load_dataset(None, data)
    assert load_dataset(DataSection(remote_images=True), data) is data


def test_a_url_is_no_path() -> None:
    for url in ("https://example.org/a.png", Path("http://example.org/a.png")):
        with pytest.raises(InputError, match=r"sample 'a' is a URL, not a path: give ImageUrl"):
            Sample("a", prompt="x", images=(url,))  # type: ignore[arg-type]
    for url in ("file:///etc/passwd", "ftp://example.org/a.png", "a.png", "http://", "http://[bad/a.png", 7):
        with pytest.raises(InputError, match="is no address of an image: give one that begins with http"):
            ImageUrl(url)  # type: ignore[arg-type]


def test_a_url_counts_in_the_fingerprint_and_travels_between_processes() -> None:
    def data(url: str) -> Dataset:
        return Dataset((Sample("a", prompt="x", images=(ImageUrl(url),)),))

    one = data("http://x.org/a.png")
    assert one.fingerprint() != data("http://x.org/b.png").fingerprint()
    assert pickle.loads(pickle.dumps(one)) == one != data("http://x.org/b.png")


def test_images_from_the_web_give_the_activations_of_the_files(
    site: Site, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    data = {"remote_images": True, "prompt_format": "raw"}
    folder = model_folder("llava")
    path = manifest(tmp_path, *(site.url(name) for name in site.pictures))
    store = extract(configuration(folder, tmp_path / "run.zarr", data=data | {"manifest": path}))
    files = extract(
        configuration(folder, tmp_path / "files.zarr", data={"prompt_format": "raw"}),
        samples=[Sample(f"s{i}", prompt="a star", images=(picture,)) for i, picture in enumerate(pictures)],
    )
    for key, x in values(files).items():
        assert (values(store)[key] == x).all()


def test_what_may_pass_is_tried_again(site: Site) -> None:
    picture = site.pictures["/0.png"]
    assert remote.fetch(site.url("/busy.png")) == picture
    assert remote.fetch(site.url("/half.png")) == picture
    assert (site.asked.count("/busy.png"), site.asked.count("/half.png")) == (3, 2)


def test_a_redirection_to_the_web_is_followed_and_a_space_is_written_as_one(site: Site) -> None:
    assert remote.fetch(site.url("/to//3.png")) == site.pictures["/3.png"]
    assert remote.fetch(site.url("/a b.png")) == site.pictures["/0.png"]


@pytest.mark.parametrize(
    ("path", "said", "times"),
    [
        ("/none.png", r"cannot be fetched: the server says 404", 1),
        ("/huge.png", r"is larger than 64 MiB: download it and make it smaller", 1),
        ("/to/file:///etc/hostname", r"cannot be fetched: .*'file:///etc/hostname' is not allowed", 1),
        ("/to/ftp://127.0.0.1/a.png", r"'ftp://127.0.0.1/a.png' is no address of an image", 1),
        ("/to/", r"cannot be fetched: the server says 302", 11),
    ],
)
def test_what_cannot_be_had_is_an_input_error(site: Site, path: str, said: str, times: int) -> None:
    with pytest.raises(InputError, match=said):
        remote.fetch(site.url(path))
    assert len(site.asked) <= times


def test_the_bound_holds_where_no_size_is_stated(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 2**20)
    with pytest.raises(InputError, match="larger than 1 MiB"):
        remote.fetch(site.url("/endless.png"))


def test_a_server_that_is_not_there_is_an_input_error(site: Site) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as gone:
        url = f"http://127.0.0.1:{gone.server_port}/a.png"
    with pytest.raises(InputError, match=r"the image http://.*/a\.png cannot be fetched: .*refused"):
        remote.fetch(url)


def test_failures_are_those_of_a_sample_and_can_be_passed_over(
    site: Site, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = manifest(tmp_path, *map(site.url, ("/0.png", "/none.png", "/page.png", "/1.png")))
    data = {"manifest": path, "remote_images": True, "prompt_format": "raw"}
    folder = model_folder("llava")
    with pytest.raises(InputError, match=r"sample 's1': the image http://.*none\.png cannot be fetched"):
        extract(configuration(folder, tmp_path / "no.zarr", data=data))
    store = extract(configuration(folder, tmp_path / "run.zarr", data=data, run={"on_error": "skip"}))
    assert store.valid.tolist() == [True, False, False, True]
    assert "the server says 404" in store.skipped[1]
    assert store.skipped[2].endswith("/page.png cannot be read: it has no format that Pillow knows")


def test_urls_of_a_manifest_with_chats_stand_in_the_image_column(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "messages": [{"role": "user", "content": "x"}], "image": "http://x.org/a.png"}\n')
    assert read_manifest(path, remote_images=True).samples[0].images == (ImageUrl("http://x.org/a.png"),)


def test_an_image_is_asked_for_once_by_neighbours_whether_it_is_there_or_not(
    site: Site, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    urls = [site.url(path) for path in ("/0.png", "/gone.png") for _ in range(4)]
    config = configuration(
        model_folder("llava"),
        tmp_path / "run.zarr",
        data={"manifest": str(manifest(tmp_path, *urls)), "remote_images": True},
        run={"on_error": "skip", "range_size": 8},
    )
    store = extract(config)
    assert sorted(store.skipped) == [4, 5, 6, 7]
    assert all(f"'s{row}'" in why for row, why in store.skipped.items())
    assert sorted(site.asked) == ["/0.png", "/gone.png"]
