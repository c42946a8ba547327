"""Removal of secrets from addresses, texts and payloads: user names, passwords, tokens and signatures.

Secrets are found by the names before them (in plain text, as options of commands, and under percent-, JSON- and
HTML-encoding), by the place of user names in addresses, by the shapes of a few tokens that have no random letters, and
by random letters: issuers choose new prefixes, but the rest of a token is drawn from capitals, small letters and
digits. All of it takes linear time.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from urllib.parse import unquote

from ciml.globs import linear_pattern

REDACTED = "REDACTED"
#: Layers of encoding that are undone; a text with more layers is replaced as a whole.
_MAX_ENCODINGS = 8
_MAX_NAME = 512

_LAST = r"token|secret|password|passwd|passphrase|apikey|credential|signature"
_KEY_LAST = r"(?:access|private|secret|api)[^a-z0-9]?key(?:[^a-z0-9]?id)?|access[^a-z0-9]?id"
_WORD = (
    rf"{_LAST}|passwrd|pwd|passcode|passkey|authorization|cookie|jwt|bearer|auth|sig|[th]?otp|psk|hmac"
    r"|saml[^a-z0-9]?(?:response|assertion|art)|client[^a-z0-9]?assertion"
)
_KEY = (
    r"(?:api|access|private|secret|sas|ssh|signing|encryption|account|shared|deploy|master|storage|auth|session)"
    r"[^a-z0-9]?key(?:[^a-z0-9]?id)?"
)
_SECRET_NAME = re.compile(
    rf"(?:(?<![a-z0-9])(?:{_WORD}|{_KEY})|(?:{_LAST}|{_KEY_LAST}))s?\d{{0,3}}(?![a-z0-9])|[^a-z0-9]pass\d{{0,3}}$"
)
_QUERY_NAME = re.compile(r"key|code|sid|session(?:[_-]?id)?|pass|ticket|hd(?:nts|ntl|nea)")
#: A name that also counts passed tests: its value is secret where it is neither a number nor after a colon.
_COUNTED = "pass"
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Marks of a possible secret. Few texts have one, and decoding an event checks every text.
_BESIDE = re.compile(r"[=:@%\\&\0]")
_BEGIN = re.compile(
    r"[gAxe\-Bb](?:h[pousr]_|ithub_pat_|l[a-z]{2,8}-|KIA|SIA|ox[a-z]-|app-|yJ|----BEGIN|[Ee][Aa]|[Aa][Ss])"
    r"|(?:^|\s)--?[A-Za-z]|slack|[_-][0-9a-f]{32}"
)
#: What every token of `TOKEN_SHAPE` has. That pattern takes ten times as long.
_SHAPE_BEGIN = re.compile(
    r"[gAxe-](?:h[pousr]_|ithub_pat_|l[a-z]{2,8}-|KIA|SIA|ox[a-z]-|app-|yJ|----BEGIN)|slack|[_-][0-9a-f]{32}"
)
# A user name and the start of a password: no port follows the colon.
_PASSWORD = linear_pattern(r"//[^/?#\s:@\"'<>\[\]]*+:(?!\d{1,5}(?:[/?#]|$))")
_USER = linear_pattern(r"[^/?#\s\"'<>@]*+")
_NAME = r"A-Za-z0-9_.\-%\[\]"
_PAIR = linear_pattern(rf"(?<![{_NAME}])([{_NAME}]++)([\"'\\]{{0,4}}\s{{0,8}}[=:]\s{{0,8}}\\{{0,3}}([\"'])?)")
_VALUES = {
    '"': linear_pattern(r'(?:[^"\\]|\\.)*+', re.DOTALL),
    "'": linear_pattern(r"(?:[^'\\]|\\.)*+", re.DOTALL),
    "=": linear_pattern(r"[\[{].*+|[^&\s\"<>]*+", re.DOTALL),
    ":": linear_pattern(r"[\[{].*+|[^\r\n\"]*+", re.DOTALL),
}
_SCHEME = linear_pattern(r"\b(bearer|basic)\s{1,8}[A-Za-z0-9._~+/=-]{8,}+", re.IGNORECASE)
TOKEN_SHAPE = linear_pattern(
    r"gh[pousr]_[A-Za-z0-9]{20,}+|github_pat_\w{20,}+|\bgl[a-z]{2,8}-[\w.-]{16,}+|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|"
    r"\bx(?:ox[a-z]|app)-[\w-]{10,}+|\bhooks\.slack\.com/services/[\w/]{20,}+|"
    r"(?<![a-z])[a-z]{0,8}(?:key|token|t[ok]kn?|secret|pat|api|live|_v\d)[_-][0-9a-f]{32,}+|"
    r"\beyJ[\w-]{8,}+\.eyJ[\w-]{8,}+(?:\.[\w-]*+)?|-----BEGIN [A-Z ]{0,40}PRIVATE KEY.*+",
    re.DOTALL,
)
#: Tokens of issuers whose prefix alone tells them, in the words of their documents. They cover tokens of hexadecimal
#: digits, which look like digests, and the few random ones that look like words.
ISSUED_TOKEN = linear_pattern(
    r"\b(?:"
    r"(?:hf|npm|nfp|vcp|ntn|pnu|rdme|CLOJARS|sk_live|sk_test|rk_live|rk_test|whsec|lin_api|sntryu)_[A-Za-z0-9]{20,}+"
    r"|(?:rubygems|sq[pua]|sbp|bkua|shp(?:at|ca|pa|ss)|do[opr]_v1)_[0-9a-f]{32,}+"
    r"|(?:figd|fo1|gls[ae]|dckr_[a-z]{3}|pscale_[a-z]{2,8})_[\w-]{20,}+|sntrys_[\w=-]{20,}+|CCIPAT_\w{20,}+"
    r"|(?:pul-|dapi)[0-9a-f]{32,}+|SK[0-9a-f]{32}\b|[0-9a-f]{32}-us\d{1,2}\b|PMAK-[0-9a-f]{24}-[0-9a-f]{20,}+"
    r"|(?:NRAK|HRKU|sq0[a-z]{3}|tskey-[a-z]{1,12})-[\w-]{20,}+|sk-(?:ant|proj)-[\w-]{20,}+|pypi-A[\w-]{40,}+"
    r"|sdk-[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|v1\.0-[0-9a-f]{24}-[0-9a-f]{64,}+"
    r"|AIza[\w-]{35}|GR1348941[\w-]{20}|EAAA[\w-]{50,}+|AT[AC]TT3[\w=-]{40,}+|AKCp[A-Za-z0-9]{40,}+|oy2[a-z0-9]{43}\b"
    r"|\d{8,10}:AA[\w-]{33}|1//0[\w-]{40,}+|pat[A-Za-z0-9]{14}\.[0-9a-f]{64}|SG\.[\w-]{16,}+\.[\w-]{16,}+"
    r"|hv[sbr]\.[\w-]{24,}+|s\.[A-Za-z0-9]{24}\b|dp\.[a-z]{2,5}\.[A-Za-z0-9]{32,}+|ya29\.[\w-]{20,}+|[\w~.]{3}\dQ~[\w.~-]{31,}+"
    r")"
)
#: Each of them holds so long a word: texts without one are not searched.
_LONG_WORD = re.compile(r"[\w-]{20}")
#: An option of a command and its value: ``--password X``.
_OPTION = linear_pattern(r"(?<![\w-])--?([A-Za-z][\w-]{2,63}+)[ \t]{1,8}+(?!-)(\"[^\"]*+\"?|'[^']*+'?|[^\s\"']++)")
#: A run of letters and digits in a word, and the characters of the word's part before it, at most `_MAX_PREFIX`.
_RUN = linear_pattern(r"(?<![A-Za-z0-9])[A-Za-z0-9]{12,}+")
_WORD_CHARACTERS = string.ascii_letters + string.digits + "_.~+-"
_MAX_PREFIX = 128
_WORD_AFTER = linear_pattern(r"[A-Za-z0-9_.~+=-]*+")
_CLASSES = linear_pattern(r"[a-z]++|[A-Z]++|[0-9]++")
_PREFIX = re.compile(r"[A-Za-z0-9][_.~-]$")
_SUFFIX = re.compile(r"[.~][A-Za-z0-9_-]{16}")
#: Digits of a digest, with the letter of a Gerrit change or a Zuul reference before it.
_HEXADECIMAL = re.compile(r"(?:[A-Z]|0x|3A)?(?:[0-9a-f]+|[0-9A-F]+)")
#: The start of a digest, and of GitHub's identifiers of objects, as PR_kwDO….
_ID = re.compile(r"(?:sha\d{1,3}|md5|blake\w{1,4})[-_.:]|[A-Z]{1,5}_[A-Za-z]")
#: The least number of letters and digits of a token without and with a prefix; of a longer one, these are examined.
_RANDOM = 24
_RANDOM_WITH_PREFIX = 12
_EXAMINED = 64
#: Small letters in succession that look like a word; the least share of such letters in a name; and the least share of
#: neighbours that differ in class in a token.
_LETTERS_OF_WORD = 3
_WORDS = 0.4
_WORDS_OF_LETTERS = 0.5
_CHANGES = 0.42
_CHANGES_OF_LETTERS = 0.32
_CHANGES_OF_CAPITALS = 0.25
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_ENTITY = re.compile(r"&(?:#[xX]([0-9A-Fa-f]{1,6})|#([0-9]{1,7})|(amp|quot|apos|equals|commat|sol|colon|percnt|num));?")
_ENTITIES = dict(zip("amp quot apos equals commat sol colon percnt num".split(), "&\"'=@/:%#"))


def redact_url(url: str) -> str:
    """Return an address as it may be stored and shown: no userinfo, no fragment, secret query values replaced.

    The rest is unchanged, so an address without secrets is returned unchanged (fragment apart).
    """
    _, scheme, remainder = url.partition("://")
    if scheme and "#" not in remainder and not _may_name_secret(remainder):
        return _without_tokens(url)
    if "//" in url:
        url = _without_userinfo(url)
    if "#" in url:
        url = url.partition("#")[0]
    return redact_text(url)


def redact_text(text: str, guess: bool = True) -> str:
    """Return a text with its secrets replaced by ``REDACTED``, and its addresses without user names and passwords.

    A text without secrets is returned unchanged. One whose secrets are encoded is returned decoded.

    Args:
      text: any text.
      guess: whether random letters and digits are secrets too.
    """
    if not _may_name_secret(text):
        return _without_tokens(text) if guess else text
    redacted = _redact_plain(text, guess)
    layer = redacted
    for _ in range(_MAX_ENCODINGS):
        inner = decoded(layer)
        if inner == layer:
            return redacted
        layer = _redact_plain(inner, guess)
        if layer != inner:
            redacted = layer  # a secret was under an encoding
    return REDACTED


def shown(text: str, most: int = 80) -> str:
    """Return a text for quoting in a message: redacted, in quotation marks, its first ``most`` characters."""
    return f"{redact_text(text)!r:.{most}}"


@lru_cache(maxsize=4096)
def is_secret_name(name: str, in_query: bool = False) -> bool:
    """Return whether a name (of a field, a header, a parameter) marks its value as secret.

    Args:
      name: in any spelling: ``apiKey``, ``X-Api-Key``, ``user[password]``.
      in_query: whether it is a parameter of an address, where ``key`` and ``code`` are secret too.
    """
    if "%" in name:
        name = unquote(name)
    name = _HUMP.sub("_", name).lower()
    return _SECRET_NAME.search(name) is not None or (in_query and _QUERY_NAME.fullmatch(name) is not None)


def hides(name: str, value: object) -> bool:
    """Return whether a field's value is secret by its name.

    Booleans and counts (``max_tokens``) are not secret.
    """
    if type(value) is bool or (type(value) in (int, float) and name[-1:] in "sS"):
        return False
    return is_secret_name(name) or (name.lower() == _COUNTED and type(value) is str)


def decoded(text: str) -> str:
    """Return the text with one layer of each encoding removed."""
    if "\0" in text:
        text = text.replace("\0", "")  # as UTF-16 has them
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    if "%" in text:
        text = unquote(text)
    if "&" in text:
        text = _ENTITY.sub(_unescaped_entity, text)
    return text


def _may_name_secret(text: str) -> bool:
    """Return whether a text has any mark of a secret; one without a mark has at most random letters and digits."""
    return _BESIDE.search(text) is not None or _BEGIN.search(text) is not None


def _redact_plain(text: str, guess: bool) -> str:
    if "//" in text:
        text = _without_userinfo(text)
    folded = text.casefold()
    if "bearer" in folded or "basic" in folded:
        text = _SCHEME.sub(rf"\1 {REDACTED}", text)
    if "=" in text or ":" in text:
        text = _without_values(text)
    if "-" in text:
        text = _OPTION.sub(_without_argument, text)
    if _SHAPE_BEGIN.search(text):
        text = TOKEN_SHAPE.sub(REDACTED, text)
    return _without_tokens(text) if guess else text


def _without_argument(option: re.Match[str]) -> str:
    name, value = option.groups()
    if not (is_secret_name(name) or name.lower() == _COUNTED) or REDACTED in value:
        return option[0]
    return option[0].removesuffix(value) + REDACTED


def _without_tokens(text: str) -> str:
    """Replace tokens: by the prefixes of their issuers, and by their random letters."""
    if _LONG_WORD.search(text):
        text = ISSUED_TOKEN.sub(REDACTED, text)
    return without_random_words(text)


def without_random_words(text: str) -> str:
    """Replace words with random letters and digits: after a prefix, as ``hf_…``, or long ones outside of paths.

    It is the last step of `redact_text`, and the only one for a text without any mark of a secret.
    """
    out: list[str] = []
    copied = 0
    for run in _RUN.finditer(text):
        if run.start() < copied or not looks_random(run[0]):
            continue
        before = text[max(run.start() - _MAX_PREFIX, copied) : run.start()]
        start = run.start() - len(before) + len(before.rstrip(_WORD_CHARACTERS))
        has_prefix = _PREFIX.search(text, start, run.start()) is not None or _SUFFIX.match(text, run.end()) is not None
        is_path = text[start - 1 : start] == "/" and not has_prefix
        least = _RANDOM_WITH_PREFIX if has_prefix else _RANDOM
        if len(run[0]) < least or is_path or _ID.match(text, start):
            continue
        after = _WORD_AFTER.match(text, run.end())
        out += (text[copied:start], REDACTED)
        copied = after.end() if after else run.end()
    return "".join((*out, text[copied:])) if out else text


def looks_random(run: str) -> bool:
    """Return whether letters and digits look as if drawn at random from capitals, small letters and digits.

    In random ones two neighbours of three differ in class, and few small letters follow each other; in names, dates and
    versions it is the other way round. Small letters alone and hexadecimal digits are digests and ids; capitals and
    digits, or capitals and small letters, have to be longer.
    """
    run = run[:_EXAMINED]
    if run.islower() or run.isdigit() or _HEXADECIMAL.fullmatch(run):
        return False
    classes = _CLASSES.findall(run)
    changes = len(classes) / len(run)
    if run.isupper():
        return len(run) >= _RANDOM and changes >= _CHANGES_OF_CAPITALS
    capitals = sum(len(part) for part in classes if part[0].isupper())
    words = sum(len(part) for part in classes if len(part) >= _LETTERS_OF_WORD and part[0].islower())
    if words >= (_WORDS_OF_LETTERS if run.isalpha() else _WORDS) * len(run):
        return False  # as in TaskRunResultLargerThanAllowedLimit
    if run.isalpha():
        return len(run) >= _RANDOM and changes >= _CHANGES_OF_LETTERS
    return changes >= _CHANGES and capitals >= len(run) / 8


def _without_userinfo(text: str) -> str:
    """Return the text without user names and passwords in addresses, even where a password holds ``//`` or ``@``."""
    *parts, last = text.split("@")
    out: list[str] = []
    before = ""  # the slashes of an address whose user name was just removed
    for part in parts:
        part = before + part
        start = _userinfo(part)
        if start >= 0:
            out.append(part[:start])
            before = "//"
        else:
            out += (part, "@")
            before = ""
    last = before + last
    cut = _PASSWORD.search(last, _last_word(last))  # as in a payload that ends within an address
    out.append(
        f"{last[: cut.start()]}//{REDACTED}" if cut and last[cut.end() : cut.end() + 1] not in ("", "/") else last
    )
    return "".join(out)


def _userinfo(before_at: str) -> int:
    """Return the index of the ``//`` of an address with user name and password before an ``@``; -1 for none."""
    word = _last_word(before_at)
    if password := _PASSWORD.search(before_at, word):
        return password.start()
    start = before_at.rfind("//", word)
    return start if start >= 0 and _USER.fullmatch(before_at, start + 2) else -1


def _last_word(text: str) -> int:
    """Return the index after the last space of a text."""
    return len(text) if text[-1:].isspace() else len(text) - len((text.rsplit(None, 1) or [""])[-1])


def _without_values(text: str) -> str:
    """Replace the values of secret names: ``name=value``, ``name: value``, ``"name": "value"``."""
    out: list[str] = []
    position = copied = 0
    while pair := _PAIR.search(text, position):
        position = pair.end()
        name, separator, quote = pair.groups()
        before = text[max(pair.start() - 1, 0) : pair.start()]
        if _names_a_secret(name, separator, before, text[position : position + 2]):
            value = _VALUES[quote or ("=" if "=" in separator else ":")].match(text, position)
            end = value.end() if value else position
            if text[position:end].strip():
                out += (text[copied:position], REDACTED)
                copied = position = end
    return "".join((*out, text[copied:])) if out else text


def _names_a_secret(name: str, separator: str, before: str, after: str) -> bool:
    if separator == ":" and (before in ("/", "@") or after == "//"):
        return False  # a host and its port, a scheme
    if len(name) > _MAX_NAME or name.endswith("data_base64"):
        return True  # too many layers to check
    if name.lower() == _COUNTED and "=" in separator:
        return True
    return is_secret_name(name, before in ("?", "&", ";", "#"))


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return _character(int(code, 16)) if code else match[3]


def _unescaped_entity(match: re.Match[str]) -> str:
    if match[3]:
        return _ENTITIES[match[3]]
    return _character(int(match[1], 16) if match[1] else int(match[2]))


def _character(code: int) -> str:
    return chr(code) if code < 0xD800 or 0xE000 <= code <= 0x10FFFF else "\N{REPLACEMENT CHARACTER}"
