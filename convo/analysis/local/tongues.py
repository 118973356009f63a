"""Tells whether what a user wrote is in a language that the rules know: English, or Vietnamese with or without marks.

In any other language the rules would weigh marks and chance words only: a furious complaint in Spanish has question
marks and exclamation marks, and looked like a lively talk. It looks at the beginning of each turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from convo.analysis.local import lexicon, words
from convo.conversation.composing import compose

_TURN_CHARACTERS = 400
_TURNS_MAX = 50

# With fewer words that no rule knows, a text may be names and numbers.
_WORDS_MIN = 6
_LATIN_LETTER = re.compile("[A-Za-z\u00aa-\u024f\u1e00-\u1eff]")
_LETTER = re.compile(r"[^\W\d_]")
# Letters of Latin that neither English nor Vietnamese has.
_FOREIGN_LETTER = re.compile("[ßäöüåæøñçîïëûÿœąćęłńśźżčďěňřšťžőűğışțșāēīūļķģõ]")
# The commonest words of other languages, but for those that are also English, or Vietnamese without its marks.
_FOREIGN_WORDS = words.several(
    # Spanish, Portuguese, Italian
    "estoy está esto esta este estaba muy pero porque por qué para una unas unos los las del el es soy eres"
    " fue era hay mis sus él ella ellos nosotros usted ustedes como cómo cuando cuándo dónde donde eso ese"
    " aquí ahora bien gracias hola quiero puedo tengo tiene nada todo siempre nunca más también mi pedido não"
    " nao você vocês ele nós uma das nas nos com isso estou são sou meu minha muito obrigado olá quando onde"
    " também porquê eu ela sono è siamo il gli per perché dove questo questa molto grazie ciao mio mia anche"
    " più sei nel della non"
    # French
    " je vous nous elle ils elles est sont suis êtes être c'est j'ai les des du et mais pas qui pour avec"
    " dans sur très merci bonjour pourquoi où mon mes votre vos cette ça fait une au aux ne sont"
    # German, Dutch
    " ich du er sie wir ihr ist sind bin bist das der dem ein eine einen einem einer und oder aber nicht kein"
    " keine mein meine mir mich dir dich sich auf mit für von zum zur wie wo warum wann wer auch noch schon"
    " sehr danke bitte hallo habe hat haben muss wird werden wurde ik jij je hij zij wij het een en van niet"
    " wel maar ook voor aan dit waarom wanneer waar hoe mijn heb heeft"
    # Swedish, Danish, Norwegian
    " jag inte och att det ett på med för av vad varför hur jeg ikke hvad hva hvorfor hvor"
    # Indonesian, Malay, Filipino
    " saya kamu anda dia kami kita tidak bukan yang dan dari untuk dengan ini itu apa mengapa kenapa"
    " bagaimana kapan mana sudah belum sangat terima kasih tolong ako ikaw siya kayo tayo sila ang ng mga"
    " hindi po opo bakit kailan saan salamat"
    # Polish, Czech, Romanian, Turkish
    " nie jest są jestem czy że jak gdzie kiedy dlaczego mój bardzo dziękuję jsem není proč kde děkuji este"
    " sunt și că pentru foarte mulțumesc ben bir değil çok neden nasıl nerede için ile teşekkürler merhaba"
)

_ENGLISH_FEELINGS = frozenset(lexicon.ENGLISH_LEXICON.reaches)


def is_known(turns: Iterable[words.UserTurn]) -> bool:
    """Return whether the rules know the language of most of this; so they do where there is too little to tell."""
    beginnings = [turn.text[:_TURN_CHARACTERS] for _, turn in zip(range(_TURNS_MAX), turns, strict=False)]
    text = "\n".join(beginnings)
    letters = len(_LETTER.findall(text))
    if letters and 2 * len(_LATIN_LETTER.findall(text)) < letters:
        return False
    found = words.words(text)
    known = sum(map(words.is_of_known_language, found))
    foreign = sum(map(_is_foreign, found))
    # Some sentences have no common word, and yet one with a feeling: "That's fair. Seems pretty lefty heavy, though."
    return foreign <= known and (
        known > 0 or len(found) < _WORDS_MIN or any(map(_ENGLISH_FEELINGS.__contains__, found))
    )


def _is_foreign(word: str) -> bool:
    if word in _FOREIGN_WORDS:
        return True
    return not word.isascii() and _FOREIGN_LETTER.search(compose(word)) is not None
