from __future__ import annotations

import pytest

from convo.analysis import local
from convo.conversation.model import Mood
from tests.support.saying import user_says

FOREIGN = [
    "Estoy muy enojado, esto es horrible. ¿Por qué no llega mi pedido? Son unos inútiles.",
    "Das ist eine Frechheit, ich bin stinksauer! Wo bleibt mein Paket?",
    "C'est une honte ! Où est ma commande ? Je suis furieux !",
    "Isso é um absurdo! Onde está o meu pedido? Vocês são péssimos!",
    "È una vergogna! Dove è il mio pacco? Sono furioso!",
    "Dit is belachelijk! Waar is mijn pakket? Ik ben woedend!",
    "Det här är inte okej! Varför har jag inte fått mitt paket?",
    "Ini sangat buruk! Kenapa pesanan saya belum sampai? Kalian tidak berguna!",
    "To jest skandal! Gdzie jest moja paczka? Jestem wściekły!",
    "Bu çok kötü! Siparişim nerede? Çok kızgınım!",
    "أين طلبي؟ متى يصل؟ هذا فظيع!",
    "Это ужасно! Где мой заказ? Я в ярости!",
    "这太糟糕了！我的订单在哪里？我很生气！",
    "ひどいです！注文はどこですか？",
    "이건 정말 끔찍해요! 제 주문은 어디에 있나요?",
    "นี่มันแย่มาก! พัสดุของฉันอยู่ที่ไหน?",
    "Αυτό είναι απαράδεκτο! Πού είναι η παραγγελία μου;",
    "यह बहुत बुरा है! मेरा ऑर्डर कहाँ है?",
    "Tämä on kamalaa! Missä tilaukseni viipyy? Olen raivoissani!",
]


@pytest.mark.parametrize("said", FOREIGN)
def test_a_language_that_is_not_known_is_not_judged(said: str) -> None:
    assert local.emotion(user_says(said)) == Mood(emotion="neutral", judged=False)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "ok",
        "123 456",
        "😀😀",
        "Pikachu!!!",
        "haha",
        "I want the déjà vu menu at the Café Müller, please!",
        "My order is late and I am furious. Where is it?",
        "mình buồn quá, tại sao vậy?",
        "minh buon qua, tai sao vay",
        "tôi muốn ăn phở",
        "wow amazing",
        "Barcelona Madrid Sevilla Valencia",
        "My favourite songs are Despacito, La Bamba, Bésame Mucho, and Danza Kuduro",
    ],
)
def test_what_is_known_or_too_short_to_tell_is_judged(said: str) -> None:
    assert local.emotion(user_says(said)).judged


def test_most_of_what_is_said_decides() -> None:
    assert local.emotion(user_says("Hola!", "I am so angry, this is awful. I hate it.")).emotion == "angry"
    assert not local.emotion(user_says("hello", *FOREIGN[:2])).judged
