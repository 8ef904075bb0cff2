import pytest
import torch

from flambeau.data import Batches, ByteTokenizer, pydoc_text, pydoc_topics, text_file, token_windows
from flambeau.data.text import plain as text_module


def test_pydoc_text_is_english_and_whole():
    text = pydoc_text()
    assert len(text) > 300_000 and 'The "if" statement' in text
    assert list(pydoc_topics()) == sorted(pydoc_topics()) and pydoc_topics()["if"] in text


def test_bytes_go_there_and_back():
    tokenizer = ByteTokenizer()
    for text in ("", "plain", "na\u00efve \u2603 \U0001f525\n"):
        tokens = tokenizer.encode(text)
        assert tokens.dtype == torch.int64 and tokenizer.decode(tokens) == text
        assert tokens.tolist() == list(text.encode())
    assert tokenizer.decode(torch.tensor([0xE2, 0x98])) == "\ufffd"
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 256\), got \[3, 256\]"):
        tokenizer.decode(torch.tensor([3, 256]))


def test_windows_cover_each_target_once_without_a_copy():
    tokens = torch.arange(23)
    windows = token_windows(tokens, 5)
    assert windows.shape == (4, 6) and torch.equal(windows[:, 1:].flatten(), torch.arange(1, 21))
    dense = token_windows(tokens, 5, stride=1)
    assert dense.shape == (18, 6) and dense.data_ptr() == tokens.data_ptr()
    batch = Batches(dense, 3).batch(0, torch.Generator())
    assert torch.equal(batch - batch[:, :1], torch.arange(6).expand(3, 6))
    with pytest.raises(ValueError, match="a window needs 24 tokens, got 23"):
        token_windows(tokens, 23)
    with pytest.raises(ValueError, match="at least 1"):
        token_windows(tokens, 3, stride=0)
    with pytest.raises(ValueError, match=r"got \[1, 23\]"):
        token_windows(tokens[None], 3)


def test_text_files(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert text_file(path) == "one\ntwo\nthree\n"
    path.write_bytes("one\n\u00e9\u00e9 ".encode() + b"\xff rest")
    with pytest.raises(ValueError, match="text.txt, line 2, column 4: byte 0xff is not UTF-8"):
        text_file(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="text.txt is empty"):
        text_file(path)
    with pytest.raises(FileNotFoundError):
        text_file(tmp_path / "none.txt")
    monkeypatch.setattr(text_module, "MAX_TEXT_BYTES", 3)
    path.write_text("four")
    with pytest.raises(ValueError, match="has 4 bytes; at most 3 are read"):
        text_file(path)
