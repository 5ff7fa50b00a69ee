"""Reads a GBNF grammar far enough to see whether every rule can end.

Used by the worker on grammars as xgrammar prints them back, so the syntax is known to be right. A
rule that derives no finite text would trap a sequence: once inside, no end is reachable.
"""

from __future__ import annotations

import re

from workbench.guided.jobs import Refused

TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*")
      | (?P<klass>\[(?:\\.|[^\]\\])*\])
      | (?P<define>::=)
      | (?P<repeat>\{\s*(?P<least>\d+)\s*(?:,\s*\d*\s*)?\})
      | (?P<name>[A-Za-z_][\w.-]*)
      | (?P<mark>\(=|[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)
Token = tuple[str, str]


def check_rules_end(grammar: str) -> None:
    """Raise `Refused` if a rule that `root` can reach derives no finite text."""
    rules = _rules(grammar)
    ending: set[str] = set()
    while True:
        more = {name for name in rules.keys() - ending if _ends(rules[name], ending)}
        if not more:
            break
        ending |= more
    # A helper that the printing of the grammar made is called after the rule it was made for.
    stuck = sorted(_reachable(rules) - ending)
    if stuck:
        problem = f"no text ever ends in the rule(s) {', '.join(stuck)}: they only lead to more"
        raise Refused(problem, "Give each rule an alternative that ends.")


def _rules(grammar: str) -> dict[str, list[Token]]:
    """Return the tokens of each rule's body."""
    tokens = [(str(m.lastgroup), m[0]) for m in _matches(grammar)]
    starts = [i - 1 for i, (kind, _) in enumerate(tokens) if kind == "define"]
    ends = [*starts[1:], len(tokens)]
    return {tokens[a][1]: tokens[a + 2 : b] for a, b in zip(starts, ends, strict=True)}


def _matches(grammar: str) -> list[re.Match[str]]:
    return list(TOKEN.finditer(grammar))


def _reachable(rules: dict[str, list[Token]]) -> set[str]:
    seen, waiting = {"root"}, ["root"]
    while waiting:
        named = {text for kind, text in rules[waiting.pop()] if kind == "name" and text in rules}
        waiting += named - seen
        seen |= named
    return seen


def _ends(body: list[Token], ending: set[str]) -> bool:
    """Whether some alternative of a rule's body derives a text, given the rules that do."""
    # One entry for each open bracket: [an earlier alternative ends, this one ends so far].
    levels, item, lookahead = [[False, True]], True, 0
    for position, (kind, text) in enumerate(body):
        if text == "(=" or lookahead:
            lookahead += text in ("(", "(=")
            lookahead -= text == ")"
            continue
        if text == "(":
            levels.append([False, True])
            continue
        if text == "|":
            levels[-1] = [levels[-1][0] or levels[-1][1], True]
            continue
        if text == ")":
            earlier, current = levels.pop()
            item = earlier or current
        elif kind == "name":
            item = text in ending
        elif kind in ("string", "klass") or text == ".":
            item = True
        else:
            continue  # a repetition, seen with what it repeats
        levels[-1][1] &= item or _optional(body[position + 1 : position + 2])
    return levels[0][0] or levels[0][1]


def _optional(following: list[Token]) -> bool:
    if not following:
        return False
    kind, text = following[0]
    return text in ("*", "?") or (kind == "repeat" and re.match(r"\{\s*0+\b", text) is not None)
