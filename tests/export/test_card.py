"""What a model card takes from outside is shown as it is: nothing of it becomes markup."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from stan_infer.checkpoints.presets import preset
from stan_infer.export.card import write_card

HOSTILE = (
    "a\n# Heading\n", "a\r\n\r\n## Heading", "a\u2028# Heading\u2029", "`", "``` `` `",
    "` <b>out</b> `", " ` ", "x`\n```\n<h1>out</h1>", "<script>alert(1)</script>", "<!-- ",
    "<img src=x onerror=alert(1)>", "[text](https://example.com)",
    "![image](https://example.com/a.png)", "<https://example.com>",
    "https://example.com www.example.com a@example.com @name #1",
    "| a | b |\n|---|---|\n| c | d |", "a | b \\| c", "*a* **b** __c__ ~~d~~",
    "&lt;b&gt; &#60;b&#62;", "\\", "\\`", "$a$ $$b$$", "caf\udce9", "- item", "", " ",
)  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.codes: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "code":
            self.codes.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "code":
            self.codes[-1] += data

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")


def rendered(path, text) -> Tags:
    value = {"name": "video", "dtype": "uint8", "shape": ["batch", text]}
    graph = {"file": text, "role": text, "precision": text, "bytes": 1e6, "inputs": [value]}
    write_card(
        path,
        {
            "model": preset("stan-tiny").to_dict(),
            "tool": {"version": "0.1.0"},
            "source": {"file": text, "checkpoint_sha256": text},
            "licence": text,
            "command": text,
            "graphs": [graph],
            "parity": [],
        },
    )
    markdown = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    return Tags(markdown.render(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_becomes_markup(text, tmp_path):
    plain, found = rendered(tmp_path / "a.md", "plain"), rendered(tmp_path / "b.md", text)
    if text:
        assert found.tags == plain.tags
    assert not {"a", "img", "script", "b"} & set(found.tags)
    assert found.tags.count("h1") == 1 and found.tags.count("table") == 1
    shown = text.replace("\udce9", "\\xe9")
    if text.strip() and shown.isprintable():
        # File, hash, licence, command; then the table's first cell.
        assert found.codes[:4] == [shown] * 4
        assert found.codes[4].strip() == shown.strip()
