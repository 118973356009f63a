"""The patterns by which the embedded analyst finds facts in Vietnamese; add new ones here.

Each form is written once, with diacritics. The bare forms are folded from them, less the pronouns that fold into other
words: "con" is also "còn" (still), "tớ" is also "to" (big).
"""

from __future__ import annotations

import re

from convo.analysis.local import words
from convo.analysis.local.forms import Form, Tongue, Trim, alternatives, any_of, form

_SOFT = (
    r"(?:(?:rất|cũng|thực sự|thật sự|vẫn|luôn|đặc biệt|cực kỳ|cực kì|cực|siêu|hiện|hiện tại|đang|đã|mới|được|vừa"
    r"|tròn|lên|năm nay|thì|hơi|khá) )*"
)
_NUMBERS = r"(?:một|hai|ba|bốn|\d) "
_RELATIVES = alternatives(
    "em trai,em gái,anh trai,chị gái,con trai,con gái,vợ,chồng,bạn gái,bạn trai,người yêu,em bé,cháu trai,cháu gái"
)
_ANIMALS = alternatives("chó,mèo,cá,thỏ,chim,hamster,rùa,vẹt,chó con,mèo con,cún,cá vàng,chuột hamster")
_JOBS = alternatives(
    "giáo viên,bác sĩ,sinh viên,học sinh,kỹ sư,kĩ sư,y tá,lập trình viên,luật sư,kế toán,đầu bếp,tài xế"
    ",nông dân,phi công"
    ",họa sĩ,ca sĩ,nhạc sĩ,nhà văn,nhà báo,công nhân,công an,bộ đội,thợ may,thợ điện,dược sĩ"
    ",nhân viên văn phòng,giảng viên"
)
_PLANTS = alternatives("xương rồng,cây xương rồng,hoa hồng,cây hoa hồng,cây sen đá,sen đá,cây bonsai,cây,hoa lan,hoa")
_PLAYED = alternatives(
    "bóng đá,bóng rổ,bóng chuyền,cầu lông,cờ vua,cờ tướng,bóng bàn,tennis,đàn piano,piano,đàn ghi ta,ghi ta,guitar"
    ",đàn guitar,violin,đàn tranh,game,điện tử"
)
_GOING = alternatives("chạy bộ,đi bơi,bơi,đi bộ,đạp xe,leo núi,câu cá,tập gym,tập yoga,nhảy,đá bóng,vẽ tranh,vẽ,nấu ăn")
_TONGUES = alternatives(
    "tiếng anh,tiếng nhật,tiếng hàn,tiếng pháp,tiếng trung,tiếng đức,tiếng nga,tiếng tây ban nha,tiếng ý,tiếng thái"
    ",tiếng việt"
)
_DATE = r"(?P<it>\d{1,2} tháng \d{1,2}|\d{1,2}[/.]\d{1,2})(?:[/.]\d{4}| năm \d{4})?"
_ON = r"(?:là |vào )?(?:là |vào )?(?:ngày |hôm )?"
_MOVED = r"(?:chuyển|dọn) (?:nhà )?(?:đến|tới|về|ra|vào)"
_OFTEN = r"(?:(?:hay|thường|thường xuyên|biết|đang|cũng|rất) )*"
_WORD = r"[^\W\d_]{1,12}"
_NAME = rf"(?P<it>{_WORD}(?: {_WORD}){{0,3}})"
_CALLED = rf"tên (?:là )?(?P<name>{_WORD}(?: {_WORD}){{0,3}})\Z"
_WHAT = rf"(?P<what>{_WORD}(?: {_WORD})?)"
_PET = rf"(?:con |chú |bé |em )(?P<it>{_ANIMALS})"
_KEEP = r"(?:nhà )?ME (?:đang )?(?:có nuôi|có|nuôi)"
_GET = r"(?:nhà )?ME (?:vừa |mới )*(?:mua|trồng|nhận nuôi|được tặng|có|nuôi)"
_LIKE = r"(?:yêu thích|thích|yêu|mê|khoái|hâm mộ|nghiện)"
_DISLIKE = r"(?:ghét|không thích|ko thích|không ưa|chẳng thích)"
_ORIGIN = r"(?:đến từ|tới từ|sinh ra ở|sinh ra tại|quê ở|quê|là người)"
_CLASS = r"(?:\d{1,2}|một|hai|ba|bốn|năm|sáu|bảy|tám|chín|mười)"
_REST = r"(?P<it>.+)"

_ROWS: tuple[tuple[str, str, str, Trim], ...] = (
    ("name", rf"tên (?:của )?ME (?:là )?{_NAME}\Z", "tên là {it}", "name"),
    ("name", rf"ME (?:có )?tên (?:là )?{_NAME}\Z", "tên là {it}", "name"),
    ("name", rf"(?:bạn )?(?:cứ |hãy )?gọi ME là {_NAME}\Z", "tên là {it}", "proper"),
    ("name", rf"ME là {_NAME}\Z", "tên là {it}", "greeted"),
    (
        "birthday",
        rf"(?:sinh nhật|ngày sinh) (?:của )?ME (?:là |vào )*(?:ngày |hôm )?{_DATE}\Z",
        "sinh nhật: {it}",
        "as is",
    ),
    ("birthday", rf"ME sinh (?:vào )?ngày {_DATE}\Z", "sinh nhật: {it}", "as is"),
    ("birthday", r"ME sinh năm (?P<it>(?:19|20)\d\d)\Z", "sinh năm {it}", "as is"),
    ("friend", rf"bạn (?:thân nhất|thân) (?:của )?ME (?:là |tên là |tên ){_NAME}\Z", "bạn thân: {it}", "proper"),
    ("language", rf"ME {_SOFT}(?:nói được|biết nói|biết|nói) (?P<it>{_TONGUES})\b", "nói {it}", "as is"),
    ("language", rf"ME {_SOFT}học (?P<it>{_TONGUES})\b", "học {it}", "as is"),
    ("fear", rf"ME {_SOFT}sợ {_REST}", "sợ {it}", "liking"),
    ("health", r"ME (?:đang )?bị (?P<it>tiểu đường|hen suyễn|cận thị|mù màu|cao huyết áp)\b", "bị {it}", "as is"),
    ("diet", rf"ME {_SOFT}(?:bị )?dị ứng (?:với )?{_REST}", "dị ứng với {it}", "liking"),
    ("diet", rf"ME {_SOFT}(?P<it>ăn chay)\b", "{it}", "as is"),
    ("diet", rf"ME {_SOFT}không ăn (?:được )?{_REST}", "không ăn {it}", "liking"),
    ("hobby", rf"ME {_OFTEN}chơi (?P<it>{_PLAYED})\b", "chơi {it}", "as is"),
    ("hobby", rf"ME (?:hay|thường) (?P<it>{_GOING})\b", "hay {it}", "as is"),
    ("hobby", rf"ME {_SOFT}sưu tầm {_REST}", "sưu tầm {it}", "liking"),
    (
        "place",
        rf"(?:nhà |gia đình )?ME {_SOFT}{_MOVED} {_REST}",
        "sống ở {it}",
        "place",
    ),
    ("plant", rf"{_GET} (?:{_NUMBERS})?(?:chậu |cây )?(?P<it>{_PLANTS}) {_CALLED}", "có {it} tên {name}", "as is"),
    ("age", rf"(?:năm nay )?ME {_SOFT}(?P<it>\d{{1,3}}) tuổi\b", "{it} tuổi", "age"),
    ("dislike", rf"ME {_SOFT}{_DISLIKE} (?:nhất là )?{_REST}", "không thích {it}", "liking"),
    ("like", rf"ME {_SOFT}{_LIKE} (?:nhất là )?{_REST}", "thích {it}", "liking"),
    ("favourite", rf"{_WHAT} (?:yêu thích|ưa thích)(?: nhất)? của ME là {_REST}", "{what} yêu thích: {it}", "liking"),
    ("favourite", rf"{_WHAT} (?:mà )?ME thích(?: nhất)? là {_REST}", "{what} yêu thích: {it}", "liking"),
    ("family", rf"ME có (?:{_NUMBERS})?(?:người |đứa |cô |cậu )?(?P<it>{_RELATIVES})(?: rồi)?\Z", "có {it}", "as is"),
    ("family", rf"(?P<it>{_RELATIVES}) (?:của )?ME {_CALLED}", "có {it} tên {name}", "as is"),
    ("family", rf"(?P<it>{_RELATIVES}) (?:của )?ME (?:là|rất|thích|đang|làm|cũng)\b", "có {it}", "as is"),
    ("family", rf"(?P<who>mẹ|bố|má|cha) (?:của )?ME (?:là|làm) (?P<it>{_JOBS})\b", "{who} là {it}", "as is"),
    ("family", r"ME (?:đã )?(?P<it>kết hôn|lập gia đình|lấy vợ|lấy chồng)(?: rồi)?\Z", "đã {it}", "as is"),
    ("pet", rf"{_KEEP} (?:{_NUMBERS})?{_PET}\Z", "nuôi {it}", "as is"),
    ("pet", rf"{_KEEP} (?:{_NUMBERS})?{_PET} {_CALLED}", "nuôi {it} tên {name}", "as is"),
    ("pet", rf"{_GET} (?:{_NUMBERS})?{_PET} {_CALLED}", "nuôi {it} tên {name}", "as is"),
    ("family", rf"(?P<it>mẹ|bố|má|cha|ông|bà) (?:của )?ME {_CALLED}", "{it} tên {name}", "as is"),
    ("pet", rf"{_PET} (?:của |nhà )ME {_CALLED}", "nuôi {it} tên {name}", "as is"),
    ("place", rf"ME {_SOFT}(?:sinh sống|sống|ở)(?: ở| tại)? {_REST}", "sống ở {it}", "place"),
    ("place", rf"nhà ME {_SOFT}ở {_REST}", "sống ở {it}", "place"),
    ("origin", rf"ME {_SOFT}{_ORIGIN} {_REST}", "quê ở {it}", "place"),
    ("origin", rf"quê (?:của )?ME (?:ở|là) {_REST}", "quê ở {it}", "place"),
    ("work", rf"ME {_SOFT}(?:là|làm|làm nghề) (?:một )?(?P<it>{_JOBS})\b", "là {it}", "as is"),
    ("work", rf"ME {_SOFT}làm việc (?:ở|tại|cho) {_REST}", "làm việc ở {it}", "proper"),
    ("school", rf"ME {_SOFT}học (?P<it>lớp {_CLASS})\b", "học {it}", "as is"),
    ("school", rf"ME {_SOFT}học (?:ở |tại )?trường {_REST}", "học trường {it}", "proper"),
)

_PRONOUNS = alternatives("tôi mình tớ tui em con cháu mk")
_BARE_PRONOUNS = alternatives("toi minh tui em chau mk")
_UNREAL = (
    r"\b(?:nếu|giá mà|giá như|giả sử|ước|ước gì|tưởng tượng|giả vờ|giả bộ|lỡ|hồi trước|ngày xưa|hồi nhỏ|bảo|nói là"
    r"|nói rằng|kể là|kể rằng|hỏi|hát|câu|đùa|truyện|phim kể|đã mất|qua đời|muốn có|sẽ)\b"
)
_LEADS = (
    r"(?:(?:xin chào|chào bạn|chào|dạ|vâng|ừ|ờ|à|ừm|có|thì|và|nhưng|vì|tại|tại vì|bởi vì|thật ra|ok|ôi|ơi|bạn ơi"
    r"|pika ơi|pika|còn|thế|vậy|nên|haha|hihi|hi|hello|ạ) )+"
)
_OPENINGS = r" (?:và|nhưng|vì|nên|rồi|còn) (?=ME )"
_GREETINGS = r"(?:xin chào|chào|hi|hello|hey|alo)\b"
_CUTS = (
    "lắm quá nhất nhé nha ạ nữa luôn cơ vì khi nhưng nếu mà hơn rồi và thôi đấy đó với nè nhỉ haha hihi vô cực cùng"
    " từ cách ơi nhưng bạn bởi do lúc"
)
_POINTERS = (
    "nó này kia thế vậy bạn cậu mày họ ấy đâu gì ai nào sao cái điều việc chuyện người anh chị em mẹ bố ba má tôi"
    " mình tớ được là có không chưa cả hết câu ý"
)
_NO_NAMES = (
    "gì rất đẹp hay này không khó dài ngắn là ai đó giống của một cũng bí học sinh viên bạn người con đang thích nhỏ lạ"
)
_NO_PLACES = "nhà đây đó trường lớp ngoài trong trên một cùng với"
_KNOWN_PLACES = (
    "ha noi,sai gon,tphcm,tp hcm,ho chi minh,thanh pho ho chi minh,da nang,hue,hai phong,can tho,nha trang,da lat"
    ",vung tau,nghe an,thanh hoa,quang ninh,bac ninh,ha long,viet nam,my,nhat,nhat ban,han quoc,duc,phap,uc,quy nhon"
    ",ben tre,dong nai,binh duong,nam dinh,thai binh,ha tinh,quang nam,quang ngai,gia lai,dak lak,sapa,sa pa,lao cai"
    ",phu quoc"
)
_LETTERS = {
    ord(letter): words.fold(letter) for letter in "àáâãèéêìíòóôõùúýăđĩũơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ"
}


def _tongue(*, bare: bool) -> Tongue:
    def spelt(text: str) -> str:
        return text.translate(_LETTERS) if bare else text

    def pattern(text: str) -> str:
        return spelt(text).replace("ME", _BARE_PRONOUNS if bare else _PRONOUNS)

    def listed(text: str) -> frozenset[str]:
        return frozenset(spelt(text).split()) - (_UNSAFE_BARE if bare else frozenset())

    forms: tuple[Form, ...] = tuple(
        form(kind, pattern(source), spelt(text), trim) for kind, source, text, trim in _ROWS
    )
    return Tongue(
        forms=forms,
        any_form=any_of(forms),
        unreal=re.compile(pattern(_UNREAL)),
        mentions=re.compile(pattern(r"\bME\b")),
        leads=re.compile(pattern(_LEADS)),
        openings=re.compile(pattern(_OPENINGS)),
        greetings=re.compile(pattern(_GREETINGS)),
        cuts=listed(_CUTS),
        pointers=listed(_POINTERS),
        articles=frozenset(),
        no_names=listed(_NO_NAMES),
        no_places=listed(_NO_PLACES),
        known_places=frozenset(_KNOWN_PLACES.split(",")),
    )


# Folded, these stand for too many other words to be refused or cut at: "ca" is "cả" and "cá", "ba" is three and father.
_UNSAFE_BARE = words.several("ca ba ma co do tu me vo cung chi em em anh")

MARKED = _tongue(bare=False)
BARE = _tongue(bare=True)
