"""What hostile or broken files hold: odd values somewhere in what is nested, and other bytes."""

ODD = (
    *(None, True, -1, 0, 1, 2, 3, 10**5, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "model", "../../etc/passwd", "é\x00\ud800", "1e99999", "x" * 5000, "float32", "pipeline"),
    *([], [[]], [None], ["x"], [0] * 1000, {}, {"x": 1}, {"": {"": {}}}),
)


def other_bytes(data, rng):
    """Some flipped, cut, doubled, or from elsewhere."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100, len(data)))
    return rng.choice(
        (
            lambda: data[:at],
            lambda: data[:at] + data[at + length :],
            lambda: data[:at] + rng.randbytes(min(length, 200)) + data[at:],
            lambda: data[:at] + rng.randbytes(min(length, len(data) - at)) + data[at + length :],
            lambda: data[:at] + data[at : at + length] * 2 + data[at + length :],
            lambda: b"",
        )
    )()


def changed(value, rng, odd=ODD):
    """Somewhere in nested dicts and lists something odd: in place of a value, another key, or one less."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        what = rng.random()
        if what < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.2:
            return {(rng.choice(("x", "", 0, -1)) if k == key else k): v for k, v in value.items()}
        return {**value, key: changed(value[key], rng, odd)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        what = rng.random()
        if what < 0.1:
            return value[:at] + value[at + 1 :]
        if what < 0.2:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], changed(value[at], rng, odd), *value[at + 1 :]]
    return rng.choice(odd)
