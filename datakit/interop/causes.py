"""Causes: what img2dataset writes about a URL, as one of our outcomes.

img2dataset keeps the text of whatever exception ended a URL, so these are the texts of urllib, http.client, ssl and
OpenCV. Some of a text may be the server's (the reason after a status), so nothing but a fixed set of names and a
number of three digits ever comes out of here.
"""

from __future__ import annotations

import re

FAILED = "img2dataset_error"  # a failure whose text says nothing that we know
FILTERED = "img2dataset_filtered"  # the picture was there, but too small, too large or too long for that run's options
GUARD = "datakit: "  # what our own guard says before the name of an outcome
GUARDED = ("refused_url", "refused_address", "too_large", "timeout_total", "opted_out", "redirects")

_LONGEST = 600  # characters of a message that are looked at
_HTTP = re.compile(r"HTTP Error (\d{3}): ", re.ASCII)
_GUARDED = re.compile(rf"(?:<urlopen error )?{GUARD}({'|'.join(GUARDED)})>?")
_FILTERS = frozenset({"image too small", "image area too large", "aspect ratio too large"})
_LATE = re.compile(r"<urlopen error (?:timed out|_ssl\.c:\d+: The handshake operation timed out)>")

# The first that is found wins; errno numbers differ between systems, words hardly do.
_TEXTS = (
    ("opted_out", r"^Use of image disallowed by X-Robots-Tag"),
    (
        "dns",
        r"Name or service not known|name resolution|No address associated|nodename nor servname|getaddrinfo failed",
    ),
    ("timeout_read", r"^timed out$|^The read operation timed out$"),
    ("timeout_connect", r"Connection timed out|Operation timed out"),
    ("tls", r"\[SSL|_ssl\.c|certificate|TLS|SSL:"),
    ("connect", r"Connection refused|No route to host|Network is (?:unreachable|down)|Host is down|assign requested"),
    ("reset", r"reset by peer|Remote end closed connection|^IncompleteRead|Broken pipe|connection abort"),
    ("protocol", r"^got more than \d+ (?:bytes|headers)|^chunk|header line"),
    (
        "refused_url",
        r"unknown url type|no host given|control characters|nonnumeric port|Invalid IPv6|codec can't encode",
    ),
    ("pixels", r"CV_IO_MAX_IMAGE_(?:PIXELS|WIDTH|HEIGHT)"),
    ("corrupt", r"^[Ii]mage decoding error|OpenCV"),
)
_COMPILED = tuple((outcome, re.compile(pattern, re.IGNORECASE)) for outcome, pattern in _TEXTS)


def outcome_of(status: str | None, message: str | None) -> tuple[str, int]:
    """The outcome and the HTTP status (0 when there was no answer) of a row of img2dataset.

    `status` is success, failed_to_download or failed_to_resize. Besides the outcomes of datakit.web.outcomes there
    is `img2dataset_error` for a text we don't know, and `img2dataset_filtered` for a picture that an option of that
    run (min_image_size, max_image_area, max_aspect_ratio) left out.
    """
    if status == "success":
        return "ok", 200
    text = (message or "")[:_LONGEST]
    if answer := _HTTP.match(text):
        number = int(answer[1])
        if "redirect error that would lead to an infinite loop" in text:
            return "redirects", number
        if text.endswith("' is not allowed") and "Redirection to url" in text:
            return "refused_url", number
        return f"http_{number}", number
    if guarded := _GUARDED.fullmatch(text):
        return guarded[1], 200 if guarded[1] == "opted_out" else 0
    if text in _FILTERS:
        return FILTERED, 200
    if _LATE.fullmatch(text):
        return "timeout_connect", 0
    for outcome, pattern in _COMPILED:
        if pattern.search(text):
            return outcome, 200 if outcome in ("opted_out", "pixels", "corrupt") else 0
    return ("corrupt", 200) if status == "failed_to_resize" else (FAILED, 0)
