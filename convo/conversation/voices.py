"""The words by which the known log formats say who spoke, what was said and when; add a vendor's spelling here.

Names and values are compared in their ``bare`` form, so ``END_USER``, ``end-user`` and ``endUser`` are one entry.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from convo.conversation.model import Speaker

Voice = Speaker | Literal["none"]
"""Who an item belongs to; ``none`` is known, and is no part of what user and bot said to each other."""

# In order of precedence. The first four are convo's own formats, OpenAI's and ShareGPT's.
SPEAKER_FIELDS = (
    *("character", "speaker", "role", "from", "sender", "author", "participant", "participantrole", "participanttype"),
    *("speakerrole", "speakertype", "senderrole", "sendertype", "authorrole", "authortype", "usertype", "agent"),
    *("source", "user", "event", "type"),
)
# Of the others most values mean something else.
STRONG_SPEAKER_FIELDS = frozenset(SPEAKER_FIELDS) - {"agent", "source", "user", "event", "type"}
# Where the speaker is an object, such as ChatGPT's ``author`` or the Bot Framework's ``from``.
SPEAKER_PARTS = ("role", "type", "name", "id")

WORD_FIELDS = (
    *("content", "text", "value", "message", "transcript", "parts", "audio", "refusal", "body", "utterance"),
    *("messagetext", "contenttext", "msg", "sentence", "transcription", "said", "kwargs", "data"),
)
# Much is called this that nobody said.
WEAK_WORD_FIELDS = frozenset({"value", "data", "kwargs", "audio", "refusal"})
# Of one part of a content. ``content`` is the parts of a part, ``value`` OpenAI Assistants' text in an object.
PART_WORD_FIELDS = ("text", "transcript", "refusal", "content", "value", "parts", "message", "audio", "body")

# Words only where they hold an object: a text there is a recording, or no one's words.
OBJECT_FIELDS = frozenset({"audio", "data", "kwargs"})

NAME_FIELDS = ("name", "speakername", "sendername", "authorname", "username", "participantname", "displayname")

TIME_FIELDS: dict[str, float | None] = {
    "timestamp": None,
    "createdat": None,
    "createtime": None,
    "time": None,
    "datetime": None,
    "date": None,
    "sentat": None,
    "starttime": None,
    "start": None,
    "secondsfromstart": 1.0,
    "timeincallsecs": 1.0,
    "timestampseconds": 1.0,
    "starttimeseconds": 1.0,
    "starttimeunixsecs": 1.0,
    "unixtime": 1.0,
    "timestampms": 0.001,
    "starttimems": 0.001,
    "startms": 0.001,
    "createdatms": 0.001,
    "beginoffsetmillis": 0.001,
    "offsetms": 0.001,
    "offsetmillis": 0.001,
}
"""The fields that hold a time, with the seconds of one unit where the name says the unit."""

# What an item may hold beside its words without a hint that words were missed.
SIDE_FIELDS = frozenset(
    {
        *("id", "uuid", "itemid", "messageid", "msgid", "turnid", "conversationid", "sessionid", "threadid", "runid"),
        *("parentid", "parent", "children", "responseid", "assistantid", "userid", "agentid", "participantid"),
        *("type", "object", "status", "index", "turn", "seq", "order", "channel", "weight", "recipient", "endturn"),
        *("updatetime", "updatedat", "completedat", "endtime", "endedat", "end", "duration", "durationms", "language"),
        *("lang", "locale", "model", "usage", "tokens", "confidence", "transcriptconfidence", "interrupted", "score"),
        *("finishreason", "stopreason", "stopsequence", "toolcalls", "toolcall", "toolcallid", "toolresults", "tools"),
        *("functioncall", "toolinvocations", "toolname", "metadata", "annotations", "attachments", "citations"),
        *("experimentalattachments", "logprobs", "reasoning", "reasoningcontent", "parsedata", "inputchannel"),
        *("contenttype", "messagetype", "private", "deleted", "edited", "sentiment", "emotion", "cachecontrol"),
        *SPEAKER_FIELDS,
        *NAME_FIELDS,
        *TIME_FIELDS,
    }
)

NUMBER_FIELDS = frozenset(
    {
        *("usage", "tokens", "confidence", "transcriptconfidence", "score", "weight", "duration", "durationms"),
        *("index", "turn", "seq", "order", "interrupted", "endturn", "private", "deleted", "edited"),
    }
)
"""Those ``SIDE_FIELDS`` that hold numbers, or yes and no: where several words stand in one, it is another field."""

_USERS = (
    *("user", "human", "customer", "caller", "prompter", "enduser", "visitor", "client", "contact", "guest"),
    *("consumer", "member", "patient", "student", "learner", "pupil", "child", "kid", "parent", "person", "player"),
    *("lead", "buyer", "shopper", "subscriber", "requester", "asker", "questioner", "speakeruser", "humanuser"),
    *("userresponseconversation", "userspeech"),
)
_BOTS = (
    *("bot", "assistant", "agent", "ai", "model", "gpt", "chatgpt", "chatbot", "pika", "botresponseconversation"),
    *("virtualagent", "virtualassistant", "automatedagent", "humanagent", "aiagent", "aiassistant", "voicebot"),
    *("voiceagent", "voiceassistant", "chatassistant", "chatagent", "operator", "advisor", "adviser", "robot"),
    *("llm", "copilot", "claude", "gemini", "bard", "bing", "support", "supportagent", "representative", "rep"),
    *("admin", "business", "host", "npc", "teacher", "tutor", "coach", "ivr", "companion", "answerer", "callee"),
    *("botspeech", "liveagent", "salesagent", "serviceagent", "customerservice"),
)
_NEITHER = (
    *("system", "developer", "tool", "function", "toolcall", "toolcalls", "toolresult", "toolresults", "tooluse"),
    *("tooloutput", "toolresponse", "toolcallresult", "toolcalloutput", "functioncall", "functioncalloutput"),
    *("functionresponse", "functionresult", "functionoutput", "observation", "ipython", "environment", "context"),
    *("instruction", "instructions", "systemprompt", "systeminstruction", "handoff", "handover", "agenthandoff"),
    *("agenthandover", "agentaction", "agentconfigupdate", "notification"),
)
_VOICES: dict[str, Voice] = {
    **dict.fromkeys(_USERS, "user"),
    **dict.fromkeys(_BOTS, "bot"),
    **dict.fromkeys(_NEITHER, "none"),
}
_PLAIN: tuple[tuple[Speaker, tuple[str, ...]], ...] = (
    ("user", ("user", "human", "customer", "USER", "USER_RESPONSE_CONVERSATION")),
    ("bot", ("assistant", "bot", "agent", "ai", "gpt", "pika", "BOT", "PIKA", "BOT_RESPONSE_CONVERSATION")),
)
PLAIN_SPEAKERS: dict[object, Speaker] = {spelling: speaker for speaker, names in _PLAIN for spelling in names}
"""The spellings that most logs use: looked up without a call for each of hundreds of items."""
# LangChain says ``HumanMessage``, Hume ``user_message``, Ultravox ``MESSAGE_ROLE_USER``, datasets ``agent_1``.
_AROUND = (("messagerole", ""), ("participantrole", ""), ("role", ""), ("", "messagechunk"), ("", "message"))

# Kinds of items that are no speech, whatever else they hold: OpenAI's and LiveKit's, Rasa's events.
_SILENT_TYPES = frozenset(
    {
        *_NEITHER,
        *("reasoning", "thinking", "itemreference", "compaction", "mcplisttools", "mcpapprovalrequest"),
        *("mcpapprovalresponse", "agentconfigupdate", "metrics", "stepstart"),
    }
)
_CALL_ENDINGS = ("call", "calloutput", "callresult", "callresponse", "handoff", "handover")
_SILENT_EVENTS = frozenset(
    {
        *("action", "slot", "sessionstarted", "sessionended", "restart", "rewind", "undo", "actionexecutionrejected"),
        *("form", "activeloop", "loopinterrupted", "followup", "reminder", "cancelreminder", "pause", "resume"),
        *("resetslots", "export", "userfeaturization", "entities", "storyexported", "conversationinactive"),
        *("flowstarted", "flowcompleted", "flowcancelled", "flowinterrupted", "flowresumed", "stack", "commands"),
    }
)

# Parts of a content that hold no speech. ``summarytext`` is the summary of a reasoning.
_SILENT_PARTS = frozenset(
    {
        *_SILENT_TYPES,
        *("redactedthinking", "redactedreasoning", "summarytext", "reasoningtext", "reasoningsummary", "thoughts"),
        *("image", "imageurl", "inputimage", "outputimage", "imagefile", "file", "inputfile", "document", "video"),
        *("videourl", "inputvideo", "source", "sourceurl", "sourcedocument", "servertooluse", "json"),
        *("dynamictool", "searchresult", "websearchtoolresult"),
        *("executablecode", "codeexecutionresult", "containerupload", "guardcontent", "cachepoint", "stepfinish"),
    }
)
_SILENT_PART_BEGINNINGS = ("tool", "step")
_SILENT_CONTENT_TYPES = frozenset(
    {
        *("code", "executionoutput", "thoughts", "reasoningrecap", "usereditablecontext", "modeleditablecontext"),
        *("tetherquote", "tetherbrowsingdisplay", "systemerror", "imageassetpointer"),
    }
)
# An untyped part, such as Bedrock's and Gemini's, says by its one field what it is.
SILENT_PART_FIELDS = frozenset(
    {
        *("tooluse", "toolresult", "reasoningcontent", "image", "document", "video", "guardcontent", "cachepoint"),
        *("functioncall", "functionresponse", "executablecode", "codeexecutionresult", "filedata", "imageurl"),
    }
)


# A cache keeps what it was asked, and a client can send a name of two megabytes.
_NAME_CHARACTERS_MAX = 64


def bare(name: str) -> str:
    """Return a name in the form in which it is compared: lower case letters and digits only."""
    return _bare(name[:_NAME_CHARACTERS_MAX])


@lru_cache(maxsize=4096)
def _bare(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def voice_of(value: object) -> Voice | None:
    """Return whose a speaker's value is, or ``None`` where it is not known."""
    return _voice(value[:_NAME_CHARACTERS_MAX]) if isinstance(value, str) else None


@lru_cache(maxsize=1024)
def _voice(value: str) -> Voice | None:
    name = bare(value)
    found = _VOICES.get(name)
    if found is None and (base := name.rstrip("0123456789")) != "agent":
        # ``user_1`` and ``user_2`` of a family are both users; of ``agent_1`` and ``agent_2`` either may be the bot.
        found = _VOICES.get(base)
    for before, after in _AROUND:
        if found is None and name.startswith(before) and name.endswith(after):
            found = _VOICES.get(name.removeprefix(before).removesuffix(after))
    return found


def is_silent_type(value: object) -> bool:
    """Return whether an item of this type is no speech: a tool call, its result, a hand-over."""
    return isinstance(value, str) and bare(value) in _SILENT_TYPES


def is_call(value: object) -> bool:
    """Return whether an item that names no speaker is a vendor's own tool call: ``web_search_call`` and its like."""
    return isinstance(value, str) and bare(value).endswith(_CALL_ENDINGS)


def is_silent_event(value: object) -> bool:
    """Return whether Rasa's name for an event is one of those in which nobody speaks."""
    return isinstance(value, str) and bare(value) in _SILENT_EVENTS


def is_audio_part(kind: object) -> bool:
    """Return whether a part of this type is speech, and says nothing only where it was not written down."""
    return isinstance(kind, str) and "audio" in bare(kind)


def is_silent_part(kind: object, content_type: object) -> bool:
    """Return whether a part of this type, or of this content type of ChatGPT's, holds no speech."""
    if isinstance(content_type, str) and bare(content_type) in _SILENT_CONTENT_TYPES:
        return True
    if not isinstance(kind, str):
        return False
    name = bare(kind)
    return name in _SILENT_PARTS or name.endswith(_CALL_ENDINGS) or name.startswith(_SILENT_PART_BEGINNINGS)
