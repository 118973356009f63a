"""The patterns by which the embedded analyst finds facts in English: "my name is …", "I like …"; add new ones here.

No pattern captures an open-ended run twice, so matching a bounded clause is quick whatever it holds.
"""

from __future__ import annotations

import re

from convo.analysis.local import words
from convo.analysis.local.forms import Form, Tongue, alternatives, any_of, form

_ME = r"(?:i'?m|i am)"
_SOFT = (
    r"(?:(?:really|also|just|still|actually|do|absolutely|always|truly|definitely|personally|especially|currently|now"
    r"|mostly|usually|live|both) )*"
)
_NUMBERS = alternatives("a an one two three four five six 1 2 3 4 5 6")
_ANIMALS = alternatives(
    "dog,cat,puppy,kitten,rabbit,bunny,hamster,parrot,fish,goldfish,turtle,tortoise,horse,pony,snake,lizard,ferret"
    ",guinea pig"
)
_LOOKS = alternatives("little big small cute old young black white brown orange pet older younger")
_RELATIVES = alternatives(
    "brother sister son daughter wife husband girlfriend boyfriend fiance fiancee grandson granddaughter stepson"
    " stepdaughter nephew niece"
)
_MANY_RELATIVES = alternatives("brothers sisters sons daughters kids children nephews nieces siblings grandchildren")
_JOBS = alternatives(
    "teacher student doctor nurse engineer developer programmer lawyer accountant chef cook driver"
    " farmer pilot artist"
    " musician singer writer journalist scientist researcher designer manager cashier waiter waitress barista plumber"
    " electrician mechanic carpenter firefighter soldier veteran dentist pharmacist librarian professor photographer"
    " translator secretary freelancer veterinarian paramedic therapist psychologist architect biologist chemist"
    " physicist analyst consultant bartender"
)
_PLAYED = alternatives(
    "guitar piano violin drums flute ukulele soccer football basketball tennis chess volleyball"
    " badminton golf baseball"
    " hockey cello trumpet"
)
_DOING = alternatives("is loves likes works has plays always thinks wants eats sleeps barks just")
_PLANTS = alternatives("cactus ficus orchid bonsai succulent fern rose tree plant bamboo palm monstera sunflower")
_LANGUAGES = alternatives(
    "english french spanish german italian portuguese russian chinese mandarin cantonese japanese korean vietnamese"
    " thai arabic hindi turkish polish dutch swedish greek latin indonesian"
)
_GOING = alternatives(
    "swimming,running,jogging,hiking,cycling,fishing,camping,climbing,dancing,skiing,skating,surfing,bowling,biking"
)
_BRANCHES = alternatives(
    "it,finance,marketing,sales,healthcare,education,construction,retail,banking,logistics,hr,advertising"
)
_MONTHS = alternatives(
    "january february march april may june july august september october november december jan feb mar apr jun jul aug"
    " sep sept oct nov dec"
)
_TRAITS = alternatives(
    "lactose intolerant,gluten intolerant,diabetic,color blind,colour blind,colorblind,colourblind,left-handed"
    ",left handed,deaf,dyslexic"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = rf"(?P<it>{_DAY}(?: of)? {_MONTHS}|{_MONTHS} (?:the )?{_DAY}|\d{{1,2}}[/.]\d{{1,2}})(?: \d{{4}})?"
_PARENTS = alternatives("mom mum mother dad father grandma grandpa grandmother grandfather")
_WORD = r"[^\W\d_][\w'-]{0,19}"
_NAME = rf"(?P<it>{_WORD}(?: {_WORD}){{0,2}})"
_TWO = rf"(?P<it>{_WORD}(?: {_WORD})?)"
_GRADE = r"grade \d{1,2}|\w{3,8} grade|high school|middle school|college"
_YEARS = r"(?:[ -]?years?[ -]old| ?yrs? old| ?yo)?"
_CALLED = rf"(?:'s name is|s name is| is called| is named) (?P<name>{_WORD})\Z"
_NOW = r"(?: now| right now| at the moment| too| as well| here)?"
_REST = r"(?P<it>.+)"
_GOT = r"i (?:just |recently )?(?:have|own|'ve got|got|bought|adopted)"
_LATELY = r"(?: yesterday| today| recently| last week| last month)?"

FORMS: tuple[Form, ...] = (
    form("name", rf"my (?:full |first |real )?name(?: is|'s|s) {_NAME}\Z", "is called {it}", "name"),
    form("name", rf"(?:you can |please |just )?call me {_NAME}\Z", "is called {it}", "proper"),
    form("name", rf"{_ME} called {_NAME}\Z", "is called {it}", "proper"),
    form("name", rf"{_ME} {_NAME}\Z", "is called {it}", "greeted"),
    form("birthday", rf"my birthday(?: is|'s) (?:on )?(?:the )?{_DATE}{_NOW}\Z", "birthday: {it}"),
    form("birthday", rf"i was born on (?:the )?{_DATE}\Z", "birthday: {it}"),
    form("birthday", r"i was born in (?P<it>(?:19|20)\d\d)\Z", "was born in {it}"),
    form(
        "friend",
        rf"my (?:best )?friend(?:'s name)? is (?:called |named )?{_NAME}\Z",
        "has a friend called {it}",
        "proper",
    ),
    form("language", rf"i {_SOFT}speak (?:fluent )?(?P<it>{_LANGUAGES})\b", "speaks {it}"),
    form("language", rf"{_ME} {_SOFT}(?:learning|studying) (?P<it>{_LANGUAGES})\b", "learns {it}"),
    form(
        "fear",
        rf"{_ME} {_SOFT}(?:so |very )?(?:afraid|scared|terrified|frightened) of {_REST}",
        "is afraid of {it}",
        "fear",
    ),
    form(
        "health",
        rf"{_ME} {_SOFT}(?P<it>{_TRAITS}){_NOW}\Z",
        "is {it}",
    ),
    form("age", rf"{_ME} {_SOFT}(?P<it>\d{{1,3}}){_YEARS}{_NOW}\Z", "is {it} years old", "age"),
    form("age", r"i (?:just )?turned (?P<it>\d{1,3})(?: today| yesterday)?\Z", "is {it} years old", "age"),
    form("dislike", rf"i {_SOFT}(?:hate|dislike|can'?t stand|detest) {_REST}", "dislikes {it}", "liking"),
    form("dislike", rf"i {_SOFT}(?:don'?t|do not) {_SOFT}(?:like|love|enjoy) {_REST}", "dislikes {it}", "liking"),
    form("like", rf"i {_SOFT}(?:like|love|adore|enjoy|prefer) {_REST}", "likes {it}", "liking"),
    form("like", rf"{_ME} {_SOFT}a (?:big |huge |massive |great )?fan of {_REST}", "likes {it}", "liking"),
    form("like", rf"{_ME} {_SOFT}an? (?:big |huge |massive )?{_TWO} fan{_NOW}\Z", "likes {it}", "liking"),
    form("like", rf"{_ME} {_SOFT}(?:into|fond of|crazy about|obsessed with) {_REST}", "likes {it}", "liking"),
    form(
        "favourite",
        rf"my (?:all[- ]time )?favou?rite (?P<what>{_WORD}(?: {_WORD})?)(?: is|'s| are) (?:probably )?{_REST}",
        "favourite {what}: {it}",
        "liking",
    ),
    form(
        "family",
        rf"i have {_NUMBERS} (?:\d{{1,2}}[ -](?:year|month)s?[ -]old )?(?:{_LOOKS} )?(?P<it>{_RELATIVES})\Z",
        "has a {it}",
    ),
    form("family", rf"my (?P<it>{_PARENTS}){_CALLED}", "{it} is called {name}"),
    form("family", rf"i have (?P<n>{_NUMBERS}) (?:{_LOOKS} )?(?P<it>{_MANY_RELATIVES})\Z", "has {n} {it}"),
    form("family", rf"my (?:{_LOOKS} )?(?P<it>{_RELATIVES}){_CALLED}", "has a {it} called {name}"),
    form("family", rf"my (?:{_LOOKS} )?(?P<it>{_RELATIVES})(?: and i| {_DOING})\b", "has a {it}"),
    form("family", rf"{_ME} {_SOFT}(?P<it>married|divorced|pregnant){_NOW}\Z", "is {it}"),
    form("family", rf"my (?P<who>mom|mum|mother|dad|father) is an? (?P<it>(?:{_WORD} )?{_JOBS})\Z", "{who} is a {it}"),
    form(
        "pet",
        rf"i (?:have|own|'ve got) {_NUMBERS} (?:{_LOOKS} )?(?P<it>{_ANIMALS})s?(?: and an? \w+)?\Z",
        "has a {it}",
    ),
    form(
        "pet",
        rf"{_GOT} {_NUMBERS} (?:new )?(?:{_LOOKS} )?(?P<it>{_ANIMALS}) (?:named|called) (?P<name>{_WORD}){_LATELY}\Z",
        "has a {it} called {name}",
    ),
    form("pet", rf"(?:my|our) (?:{_LOOKS} )?(?P<it>{_ANIMALS}){_CALLED}", "has a {it} called {name}"),
    form(
        "plant",
        rf"{_GOT} {_NUMBERS} (?:new )?(?:{_LOOKS} )?(?P<it>{_PLANTS}) (?:named|called) (?P<name>{_WORD}){_LATELY}\Z",
        "has a {it} called {name}",
    ),
    form("plant", rf"(?:my|our) (?:{_LOOKS} )?(?P<it>{_PLANTS}){_CALLED}", "has a {it} called {name}"),
    form("pet", rf"my (?:{_LOOKS} )?(?P<it>{_ANIMALS}) {_DOING}\b", "has a {it}"),
    form("place", rf"we {_SOFT}(?:live in|moved to) {_REST}", "lives in {it}", "place"),
    form("place", rf"(?:i {_SOFT}live|{_ME} {_SOFT}living) (?:in|near) {_REST}", "lives in {it}", "place"),
    form("place", rf"i (?:just |recently )?moved to {_REST}", "lives in {it}", "place"),
    form("origin", rf"(?:{_ME}|i come) {_SOFT}(?:originally )?from {_REST}", "is from {it}", "place"),
    form("origin", rf"i (?:was born|grew up|was raised|was born and raised) in {_REST}", "is from {it}", "place"),
    form("work", rf"{_ME} {_SOFT}an? (?P<it>(?:[^\W\d_]+ ){{0,2}}{_JOBS}){_NOW}\Z", "is a {it}"),
    form("work", rf"i {_SOFT}work as an? {_TWO}{_NOW}(?: (?:at|in|for) .+)?\Z", "is a {it}"),
    form("work", rf"i {_SOFT}work in (?P<it>{_BRANCHES}){_NOW}\Z", "works in {it}"),
    form("work", rf"i {_SOFT}work (?:at|for) {_REST}", "works at {it}", "proper"),
    form("school", rf"{_ME} {_SOFT}in (?:the )?(?P<it>{_GRADE}){_NOW}\Z", "is in {it}"),
    form("school", rf"i {_SOFT}(?:go to|study at|attend) {_REST}", "goes to {it}", "proper"),
    form("school", rf"i(?:'?m| am)? (?:study|studying|majoring in) {_TWO}\Z", "studies {it}", "liking"),
    form("hobby", rf"i {_SOFT}play (?:the )?(?P<it>{_PLAYED})\b", "plays {it}"),
    form("diet", rf"{_ME} {_SOFT}(?:a )?(?P<it>vegan|vegetarian|pescatarian){_NOW}\Z", "is {it}"),
    form("hobby", rf"i {_SOFT}go (?P<it>{_GOING})\b", "goes {it}"),
    form("hobby", rf"i {_SOFT}collect {_REST}", "collects {it}", "liking"),
    form("diet", rf"{_ME} {_SOFT}allergic to {_REST}", "is allergic to {it}", "liking"),
    form("diet", rf"i (?:have|'ve got) an? (?P<it>{_WORD}) allergy{_NOW}\Z", "is allergic to {it}"),
    form("diet", rf"i {_SOFT}(?:don'?t|do not|can'?t|cannot) {_SOFT}eat {_REST}", "does not eat {it}", "liking"),
)

ENGLISH = Tongue(
    forms=FORMS,
    any_form=any_of(FORMS),
    # After one of these nothing in the sentence states a present fact.
    unreal=re.compile(
        r"\b(?:if|would|wouldn'?t|wish|imagine|suppose|pretend|pretending|unless|used to|i'd|dreamed|dreamt|said|says"
        r"|told|asked|wrote|sings|song|lyrics|quote|joke|kidding|passed away|died|lied|lying|character)\b"
    ),
    mentions=re.compile(r"\b(?:i|im|my|call me|we|our)\b"),
    leads=re.compile(
        r"(?:(?:hi|hello|hey|there|yes|yeah|yea|yep|yup|no|nope|ok|okay|oh|wow|haha|lol|well|so|and|but|also|because"
        r"|actually|honestly|personally|as for me|by the way|btw|sure|nice|cool|great|good|though|although|usually"
        r"|sometimes|i think|i guess|i have to say) )+"
    ),
    openings=re.compile(r" (?:and|but|so|because|cause|since|though|then) (?=(?:i|i'm|im|my) )"),
    greetings=re.compile(r"(?:hi|hello|hey|good (?:morning|evening|afternoon))\b"),
    cuts=words.several(
        "because cause when while since as but so if that who which where than over too yeah yes yep sometimes lot"
        " very much also though although now lol haha most best more especially and or actually anyways anyway again"
        " either neither myself for with until even just right like have am do"
    ),
    pointers=words.several(
        "it that this them him her you those these me one ones they he she we what how why your his their our my its"
        " all both some any none everything anything nothing something someone everyone people being knowing having"
        " same way idea ideas story stories joke jokes fact facts point us i i'm not is are was u ur thing things"
        " stuff"
    ),
    articles=frozenset(("a", "an", "the")),
    no_names=words.several(
        "not on in at the a an unknown secret none hard too very pretty common long short old really also mine yours"
        " his hers what sorry fine good great ok okay well happy sad here back new sure glad ready done bored tired"
        " from so interesting and is nobody crazy later maybe when if american british vietnamese christian muslim"
    ),
    no_places=words.several("i it god love peace fear hell heaven"),
    known_places=words.several(
        "hanoi,ha noi,saigon,hue,da nang,vietnam,london,new york,new york city,nyc,california,texas,florida,ohio"
        ",boston,chicago,los angeles,la,seattle,canada,england,australia,india,japan,france,germany,china,singapore"
        ",paris,tokyo,usa,the usa,the us,the uk,uk,america,new england,michigan,georgia,virginia,washington,toronto"
        ",spain,italy"
    ),
)
