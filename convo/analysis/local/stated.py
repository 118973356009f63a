"""Finds the facts that users state about themselves: the embedded analyst's part ``memories``.

Questions, hypotheticals, reports of what somebody else said and quotations yield nothing. A fact's key is its kind and
its folded words: the same in every conversation, spelt with diacritics or without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from convo.analysis.local import asked, english, forms, slices, vietnamese, words
from convo.conversation.model import Conversation, Memories, MemoryFact

LOCAL_FACTS_MAX = 50
FACT_CHARACTERS_MAX = 200
CLAUSE_CHARACTERS_MAX = 160

_TONGUES: dict[words.Language, forms.Tongue] = {
    "english": english.ENGLISH,
    "vietnamese": vietnamese.MARKED,
    "bare vietnamese": vietnamese.BARE,
}
_QUESTION_WORDS_MIN = 3


def memories(conversation: Conversation) -> Memories:
    """Find what the user said of themselves, in order, each fact once."""
    found: dict[str, MemoryFact] = {}
    for said in slices.each(words.user_turns(conversation)):
        for fact in stated(said):
            found.setdefault(fact.key, fact)
        if len(found) >= LOCAL_FACTS_MAX:
            break
    return Memories(facts=tuple(found.values())[:LOCAL_FACTS_MAX])


def stated(said: words.UserTurn) -> Iterator[MemoryFact]:
    """Give the facts of one turn; repeats are left in."""
    tongue = _TONGUES[said.language]
    greeted = tongue.greetings.match(_spelt(said.text, said.language)) is not None
    for sentence in words.sentences(words.unquoted(said.text)):
        spelt = _spelt(sentence.text, said.language)
        if tongue.mentions.search(spelt) and not tongue.unreal.search(spelt):
            yield from _of_sentence(sentence, said.language, greeted=greeted)


def _of_sentence(sentence: words.Sentence, language: words.Language, *, greeted: bool) -> Iterator[MemoryFact]:
    # The facts first: most sentences hold none, and to find out what in one of them asks costs more.
    clauses = words.clauses(sentence.text)
    found = [(clause, facts) for clause in clauses if (facts := [*_facts(clause, language, greeted=greeted)])]
    if found:
        states = _statements(sentence, language)
        for clause, facts in found:
            if clause in states:
                yield from facts


def _spelt(text: str, language: words.Language) -> str:
    return words.fold(text) if language == "bare vietnamese" else words.lower(text)


def _statements(sentence: words.Sentence, language: words.Language) -> list[str]:
    # "I like tea, what about you?" states and asks; "I like tea, right?" only asks.
    parts = words.clauses(sentence.text)
    asking = [asked.asks(part, language) for part in parts]
    if not sentence.asked and not asked.asks(sentence.text, language):
        return parts
    if not any(asking) or (sentence.asked and not asking[-1]) or len(words.words(parts[-1])) < _QUESTION_WORDS_MIN:
        return []
    return [part for part, is_question in zip(parts, asking, strict=True) if not is_question]


def _facts(clause: str, language: words.Language, *, greeted: bool) -> Iterator[MemoryFact]:
    tongue = _TONGUES[language]
    for part in _openings(clause.replace("’", "'"), language):
        spelt = _spelt(part, language)
        lead = tongue.leads.match(spelt)
        start = lead.end() if lead else 0
        if tongue.mentions.search(spelt, start):
            yield from _first_fact(part[start:], spelt[start:], tongue, greeted=greeted)


def _first_fact(part: str, spelt: str, tongue: forms.Tongue, *, greeted: bool) -> Iterator[MemoryFact]:
    found = tongue.any_form.match(spelt)
    # Its groups are the forms: those before the first that matches do not.
    first = len(tongue.forms) if found is None else (found.lastindex or 1) - 1
    for form in tongue.forms[first:]:
        if (greeted or form.trim != "greeted") and (match := form.pattern.match(spelt)):
            fact = _fact(form, match, part, tongue)
            if fact is not None:
                yield fact
                return


def _openings(clause: str, language: words.Language) -> list[str]:
    parts, start = [], 0
    for opening in _TONGUES[language].openings.finditer(_spelt(clause, language)):
        parts.append(clause[start : opening.start()])
        start = opening.end()
    return [part.strip()[:CLAUSE_CHARACTERS_MAX] for part in (*parts, clause[start:]) if part.strip()]


def _fact(form: forms.Form, match: re.Match[str], part: str, tongue: forms.Tongue) -> MemoryFact | None:
    # The pattern reads lower case, the fact keeps the user's own spelling.
    captured = {name: part[slice(*match.span(name))].strip() for name in match.groupdict() if match[name]}
    captured["it"] = forms.cut(captured["it"], form.trim, tongue)
    identity = words.key(" ".join(captured[name].removeprefix("the ") for name in sorted(captured)))
    if not captured["it"] or not identity:
        return None
    text = form.text.format(**captured)[:FACT_CHARACTERS_MAX].strip()
    return MemoryFact(key=f"{form.kind}:{identity}"[:FACT_CHARACTERS_MAX], text=text, kind=form.kind)
