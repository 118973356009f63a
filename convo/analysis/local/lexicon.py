"""The words, phrases and pictures that carry a feeling, with their weights: the data of ``mood``.

A phrase of weight 0 keeps its words from being weighed: "vui lòng" is "please", not joy.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from convo.analysis.local import words

Affect = Literal["interesting", "boring", "angry", "happy", "sad"]
Weighed = tuple[Affect, float]

_ENGLISH: dict[Affect, dict[float, str]] = {
    "interesting": {
        2.0: (
            "interesting,fascinating,fascinated,intriguing,tell me more,mind blowing,so cool,very cool"
            ",curious,i'm intrigued"
        ),
        1.5: "wow,whoa,woah,amazing,incredible,awesome,impressive,unbelievable,impressed,mind-blowing,amazed",
        1.0: (
            "cool,neat,crazy,wild,insane,no way,did not know,didn't know,didnt know,never knew"
            ",had no idea,have no idea,surprising"
            ",surprised,shocked,shocking,omg,hard to believe,can't believe,cant believe,can't imagine"
            ",i wonder,genius,brilliant"
            ",wonder,good to know,learned,what else,go on,wondering,interested,really like to know"
            ",unique,who knew,hard to imagine"
        ),
        0.0: "interested in nothing",
    },
    "boring": {
        2.5: (
            "boring,bored,bores,so dull,yawn,not interested,wasn't interested,no interest,let's stop,snooze,snoozefest"
        ),
        1.5: (
            "meh,don't care,dont care,do not care,who cares,whatever,dull,uninteresting,change the subject"
            ",tedious,i guess so"
        ),
        0.0: "so what do,bored gamer,whatever you,whatever they,whatever it",
    },
    "angry": {
        3.0: (
            "angry,furious,i hate you,hate you,shut up,pissed,pissed off,outraged,fuck you"
            ",you are stupid,you're stupid,you idiot"
            ",leave me alone,you're useless,you are useless,you are so stupid,you are an idiot"
            ",you're an idiot,i'm mad,i am mad"
            ",i'm so mad,so mad at,mad at you,screw you,go away"
        ),
        1.5: (
            "hate,hated,annoying,annoyed,annoys,stupid,idiot,idiots,wtf,fuck,fucking,bullshit,useless"
            ",disgusting,disgusted,rage"
        ),
        1.0: (
            "horrible,awful,terrible,pathetic,ridiculous,disgrace,unacceptable,infuriating,unfair,sick of"
            ",fed up,shame on,gross"
        ),
        0.0: "hate to say,ridiculous amount,hate to admit,ridiculously",
    },
    "happy": {
        2.5: (
            "i'm happy,i am happy,so happy,very happy,overjoyed,delighted,thrilled,best day,can't wait"
            ",cant wait,so excited,yay"
        ),
        1.5: (
            "happy,glad,excited,love it,loved it,love this,wonderful,fantastic,enjoyed,great chat"
            ",great talking,nice chatting"
            ",nice talking,pleasure,proud,hooray,hurray,great chatting,good chatting,nice talking to you"
            ",great conversation"
        ),
        1.0: (
            "love,loved,loves,fun,hilarious,haha,hahaha,hahahaha,hehe,hihi,lol,lmao,rofl,enjoy,thank you"
            ",adorable,lovely,beautiful"
        ),
        0.5: (
            "great,nice,thanks,funny,favorite,favourite,good,cute,like that,best,sweet,not bad,fan,laugh"
            ",pretty good,i like"
        ),
        0.0: "like,good luck with that,would love to know,make fun,love of",
    },
    "sad": {
        3.0: (
            "i'm sad,i am sad,so sad,very sad,heartbroken,depressed,miserable,devastated,i feel lonely"
            ",i'm lonely,i am lonely"
            ",i'm crying,i am crying,makes me cry,made me cry,feel down,feeling down,i miss my"
            ",i miss him,i miss her,hopeless"
        ),
        1.5: (
            "sad,sadly,lonely,unhappy,grief,grieving,cry,crying,passed away,heartbreaking,disappointed"
            ",disappointing,tragic,tears"
        ),
        1.0: (
            "unfortunately,unfortunate,that sucks,upset,tragedy,poor guy,feel bad,feel sorry,too bad"
            ",depressing,died,scary,worried"
        ),
        0.0: "cry laughing,tears of joy,crying laughing,laughing so hard i cried",
    },
}
_VIETNAMESE: dict[Affect, dict[float, str]] = {
    "interesting": {
        2.0: (
            "thú vị,hấp dẫn,kể tiếp,kể thêm,nói thêm,kể nữa,kể cho mình nghe,kể em nghe,kể con nghe"
            ",tò mò,lôi cuốn,cho mình biết thêm"
            ",muốn biết thêm,muốn nghe thêm,hay quá,hay ghê,hay thật,hay thế,hay vậy,hay đấy,rất hay"
            ",thật hay,hay lắm,quá hay,hay nhỉ"
        ),
        1.5: (
            "tuyệt vời,ấn tượng,kinh ngạc,ngạc nhiên,bất ngờ,wow,quao,không ngờ,đỉnh quá,siêu thật,quá đỉnh"
            ",đỉnh thật,không thể tin"
        ),
        1.0: (
            "lạ nhỉ,ghê thật,giỏi quá,giỏi thế,giờ mới biết,bây giờ mới biết,kỳ lạ,kì lạ,ồ,tuyệt,đỉnh,độc đáo,hào hứng"
        ),
    },
    "boring": {
        2.5: (
            "chán,chán quá,chán ghê,chán lắm,nhàm chán,buồn chán,tẻ nhạt,nhạt nhẽo,chán phèo,buồn ngủ"
            ",chán chết,chán thế"
        ),
        1.5: "sao cũng được,kệ,không quan tâm,thôi khỏi,không muốn nói nữa,thôi không nói nữa,đổi chủ đề,nhạt",
        0.5: "tùy,tùy bạn,gì cũng được,thế nào cũng được",
        0.0: "kệ sách,chán ăn,kể cả",
    },
    "angry": {
        3.0: (
            "tức giận,giận,bực mình,bực quá,bực ghê,bực bội,tức quá,tức ghê,tức lắm,tức thế,điên tiết"
            ",im đi,câm mồm,câm đi,cút đi,đồ ngu"
            ",ngu thế,ngu quá,ngu vậy,đồ ngốc,phẫn nộ,cáu quá,phát điên,nổi giận,tức chết,vô dụng"
            ",ghét bạn,ghét mày,tức điên"
        ),
        1.5: "ghét,bực,cáu,khó chịu,quá đáng,tồi tệ,láo,ngu,đáng ghét,vớ vẩn,tệ quá,tệ thật,dở tệ,kinh tởm,bất công",
        0.0: "oan giận,giận hờn vu vơ",
    },
    "happy": {
        2.5: (
            "vui quá,vui lắm,rất vui,vui ghê,vui thật,hạnh phúc,sung sướng,phấn khởi,mừng quá,sướng quá"
            ",vui ơi là vui,vui cực"
        ),
        1.5: (
            "vui,vui vẻ,mừng,buồn cười,yêu bạn,yêu quá,thích quá,thích lắm,thích ghê,háo hức,mắc cười,yêu pika,vui thế"
        ),
        1.0: (
            "haha,hihi,hehe,hí hí,kaka,hahaha,cảm ơn,cám ơn,tốt quá,yêu,đáng yêu,dễ thương,tuyệt quá,xinh quá,tự hào"
        ),
        0.5: "thích,tốt,ngon,xinh,đẹp,hay",
        0.0: "vui lòng,tốt nghiệp,hay là,hoặc là hay,tốt hơn,hay không,yêu cầu",
    },
    "sad": {
        3.0: (
            "buồn quá,buồn lắm,rất buồn,buồn ghê,đau lòng,tuyệt vọng,muốn khóc,khóc nhiều,tủi thân,cô đơn"
            ",đau khổ,trầm cảm,buồn thật"
        ),
        1.5: (
            "buồn,khóc,thất vọng,tiếc quá,đáng tiếc,tiếc ghê,tội nghiệp,nhớ nhà,mất rồi,buồn bã,chia tay"
            ",bị mắng,bị bắt nạt,lo lắng"
        ),
        1.0: "mệt,mệt mỏi,mệt quá,tiếc,tội quá,tội ghê,xui quá,sợ,sợ quá",
        0.0: "buồn nôn,hết buồn,đỡ buồn,mệt nghỉ",
    },
}
_PICTURES: dict[Affect, dict[float, str]] = {
    "interesting": {1.5: "🤩 😮 😯 😲 🤯 👀 🤔 🔥", 1.0: "👏 💯 😎"},
    "boring": {2.0: "🥱 😴 😑 😒 🙄 💤"},
    "angry": {2.5: "😡 😠 🤬 👿 💢 🖕", 1.5: "😤 👎"},
    "happy": {2.0: "😀 😃 😄 😁 😊 🥰 😍 🎉 🥳 ❤ 💕 💖", 1.0: "😂 🤣 😆 🙂 😉 👍 😘 :) :-) :D =) ^^ :)) =)) xD <3 :3"},
    "sad": {2.0: "😢 😭 😞 😔 😿 💔 🥺 ☹ 🙁 😩 😥", 1.5: ":( :-( =( :(( T_T ;( :'("},
}
# Folded, these are other words as well: "chân" (foot), "gian" (room), "ngữ" (language), "độ" (degree), "sở".
_UNSAFE_BARE = words.several("chan gian ngu lao cau hay do dinh tiec tot ke so nhat o khoc bat met ngon tuy")


class Lexicon(Struct, frozen=True, kw_only=True):
    """Phrases with what they weigh, and for each first word the longest phrase that it opens, in words."""

    phrases: dict[str, Weighed]
    reaches: dict[str, int]


def _lexicon(phrases: dict[str, Weighed]) -> Lexicon:
    reaches: dict[str, int] = {}
    for phrase in phrases:
        found = phrase.split(" ")
        reaches[found[0]] = max(reaches.get(found[0], 0), len(found))
    return Lexicon(phrases=phrases, reaches=reaches)


def _table(lexicon: dict[Affect, dict[float, str]]) -> dict[str, Weighed]:
    return {
        phrase: (affect, weight)
        for affect, weights in lexicon.items()
        for weight, phrases in weights.items()
        for phrase in phrases.split(",")
    }


_english, _vietnamese = _table(_ENGLISH), _table(_VIETNAMESE)
_bare = {words.fold(phrase): weighed for phrase, weighed in _vietnamese.items()}
ENGLISH_LEXICON = _lexicon(_english)
VIETNAMESE_LEXICON = _lexicon(_english | _vietnamese)
BARE_VIETNAMESE = _lexicon(_english | {phrase: _bare[phrase] for phrase in _bare.keys() - _UNSAFE_BARE})
PICTURES: dict[str, Weighed] = {
    picture: (affect, weight)
    for affect, weights in _PICTURES.items()
    for weight, pictures in weights.items()
    for picture in pictures.split()
}
NEGATIONS = words.several(
    "not no never isn't isnt wasn't wasnt aren't arent don't dont doesn't doesnt didn't didnt ain't hardly without"
    " can't cannot weren't won't không chẳng chả chưa đừng ko hông hổng khong chang"
)
INTENSIFIERS = words.several("very so really super extremely absolutely incredibly totally rất cực siêu thật quá rat")
SOFTENERS = words.several("bit little slightly kinda somewhat hơi hoi")
# What a denied feeling stands for, and how much of it: "not happy" is sad, "not boring" a little interesting.
DENIED: dict[Affect, Weighed] = {
    "interesting": ("boring", 0.75),
    "boring": ("interesting", 0.5),
    "happy": ("sad", 1.0),
    "sad": ("happy", 0.0),
    "angry": ("happy", 0.0),
}
