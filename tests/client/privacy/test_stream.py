"""Draws have the right distributions, never repeat, and hide their key."""

import copy
import os
import pickle

import numpy as np
import pytest
from scipy import stats

from client.privacy.stream import OsStream, chacha20
from simulations.seeded import SeededStream

N = 400_000


def test_uniform_numbers_follow_the_uniform_distribution() -> None:
    u = SeededStream(1, "uniform").uniform(N).numpy()
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_uniform_numbers_use_53_bits() -> None:
    words = SeededStream(1).uniform(10_000).numpy() * 2.0**53
    assert np.array_equal(words, np.round(words))
    assert np.any(words % 2 == 1)


def test_chosen_indices_are_distinct_and_every_one_is_as_likely() -> None:
    stream = SeededStream(4)
    counts = np.zeros(7)
    first = np.zeros(7)
    for _ in range(3000):
        chosen = stream.choose(7, 3).numpy()
        assert len(set(chosen)) == 3
        counts[chosen] += 1
        first[chosen[0]] += 1
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.chisquare(first).pvalue > 1e-3
    assert sorted(stream.choose(5, 5).tolist()) == list(range(5))
    assert stream.choose(5, 0).tolist() == []
    with pytest.raises(ValueError, match="choose"):
        stream.choose(2, 3)


def test_two_streams_of_the_system_differ_and_do_not_repeat() -> None:
    blocks = [OsStream().read(64) for _ in range(20)]
    stream = OsStream()
    blocks += [stream.read(64) for _ in range(20_000)]
    assert len(set(blocks)) == len(blocks)


def test_the_block_counter_goes_on_beyond_32_bits() -> None:
    # 256 GiB into the stream a 32-bit counter would wrap and repeat the noise.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    key = bytes(range(32))
    late = (2**32 - 1).to_bytes(8, "little") + bytes(8)
    keystream = Cipher(algorithms.ChaCha20(key, late), None).encryptor().update(bytes(128))
    assert keystream[64:] != chacha20(key).update(bytes(64))


def test_a_seeded_stream_repeats_itself_and_labels_set_it_apart() -> None:
    assert SeededStream(1, "site", 2).read(32) == SeededStream(1, "site", 2).read(32)
    streams = [(1,), (2,), (1, "a"), (1, "b"), (1, "a", "b"), (1, "a, b"), (1, 1), (1, "1")]
    draws = {SeededStream(seed, *labels).read(32) for seed, *labels in streams}
    assert len(draws) == len(streams)


@pytest.mark.parametrize("stream", [OsStream(), SeededStream(1)])
def test_a_stream_can_be_neither_copied_nor_pickled(stream: OsStream | SeededStream) -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="repeat"):
            attempt(stream)


def test_no_attribute_of_a_stream_holds_key_bytes() -> None:
    stream = OsStream()
    assert repr(stream) == "OsStream()"
    assert not any(isinstance(v, bytes | bytearray | str) for v in vars(stream).values())


def test_a_forked_child_draws_other_numbers_than_its_parent() -> None:
    stream, seeded = OsStream(), SeededStream(1)
    stream.read(8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            seeded.read(8)
            refused = b"no"
        except RuntimeError:
            refused = b"ok"
        os.write(writer, refused + stream.read(32))
        os._exit(0)
    os.waitpid(child, 0)
    answer = os.read(reader, 64)
    assert answer[:2] == b"ok"
    assert len(answer) == 34
    assert answer[2:] != stream.read(32)
