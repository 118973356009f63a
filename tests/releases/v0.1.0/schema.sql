CREATE FUNCTION public.convo_now() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$SELECT now()$$;
CREATE TABLE public.api_key (
    key_id text NOT NULL COLLATE pg_catalog."C",
    digest bytea NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    requests_per_second double precision DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT public.convo_now() NOT NULL,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone
);
CREATE TABLE public.conversation (
    seq bigint NOT NULL,
    conversation_id text NOT NULL COLLATE pg_catalog."C",
    user_id text NOT NULL COLLATE pg_catalog."C",
    bot_id text NOT NULL COLLATE pg_catalog."C",
    bot_name text,
    bot_type text,
    agent_tag text,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone NOT NULL,
    received_at timestamp with time zone NOT NULL,
    turns integer NOT NULL,
    exchanges integer NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C"
);
CREATE TABLE public.conversation_log (
    seq bigint NOT NULL,
    body bytea NOT NULL
);
ALTER TABLE ONLY public.conversation_log ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE public.conversation ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.conversation_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE public.job (
    seq bigint NOT NULL,
    state text DEFAULT 'ready'::text NOT NULL COLLATE pg_catalog."C",
    fair_key text NOT NULL COLLATE pg_catalog."C",
    attempts integer DEFAULT 0 NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    delayed boolean DEFAULT false NOT NULL,
    available_at timestamp with time zone DEFAULT public.convo_now() NOT NULL,
    waits_for text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    parked_since timestamp with time zone,
    lease_token bigint,
    leased_at timestamp with time zone,
    leased_until timestamp with time zone,
    leased_by text COLLATE pg_catalog."C",
    last_error text,
    ended_at timestamp with time zone,
    reviewed_at timestamp with time zone,
    score integer,
    breakdown jsonb,
    weights_version text,
    CONSTRAINT job_check CHECK (((state = 'leased'::text) = (lease_token IS NOT NULL))),
    CONSTRAINT job_check1 CHECK (((state = ANY (ARRAY['done'::text, 'dead'::text])) = (ended_at IS NOT NULL))),
    CONSTRAINT job_check2 CHECK (((state = 'done'::text) = (score IS NOT NULL))),
    CONSTRAINT job_check3 CHECK (((reviewed_at IS NULL) OR (state = 'dead'::text))),
    CONSTRAINT job_check4 CHECK (((waits_for = ''::text) OR (parked_since IS NOT NULL))),
    CONSTRAINT job_state_check CHECK ((state = ANY (ARRAY['ready'::text, 'leased'::text, 'done'::text, 'dead'::text])))
)
WITH (fillfactor='80');
CREATE TABLE public.ledger (
    day date NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    n bigint NOT NULL,
    at timestamp with time zone DEFAULT public.convo_now() NOT NULL,
    CONSTRAINT ledger_kind_check CHECK ((kind = ANY (ARRAY['accepted'::text, 'done'::text, 'dead'::text])))
);
CREATE TABLE public.memory (
    memory_seq bigint NOT NULL,
    user_id text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL,
    text text NOT NULL,
    seq bigint NOT NULL,
    first_seen_at timestamp with time zone DEFAULT public.convo_now() NOT NULL
);
ALTER TABLE public.memory ALTER COLUMN memory_seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.memory_memory_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE public.part (
    seq bigint NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    made_by text NOT NULL,
    result jsonb,
    new_memories integer DEFAULT 0 NOT NULL,
    error text,
    updated_at timestamp with time zone DEFAULT public.convo_now() NOT NULL,
    CONSTRAINT part_check CHECK (((state = 'done'::text) = (result IS NOT NULL))),
    CONSTRAINT part_name_check CHECK ((name = ANY (ARRAY['questions'::text, 'emotion'::text, 'memories'::text]))),
    CONSTRAINT part_state_check CHECK ((state = ANY (ARRAY['done'::text, 'failed'::text])))
);
CREATE TABLE public.process (
    name text NOT NULL COLLATE pg_catalog."C",
    pid integer NOT NULL,
    host text NOT NULL,
    connections_max integer NOT NULL,
    started_at timestamp with time zone DEFAULT public.convo_now() NOT NULL,
    seen_at timestamp with time zone DEFAULT public.convo_now() NOT NULL
);
CREATE TABLE public.relationship (
    user_id text NOT NULL COLLATE pg_catalog."C",
    bot_id text NOT NULL COLLATE pg_catalog."C",
    score bigint NOT NULL,
    conversations integer NOT NULL,
    last_emotion text NOT NULL,
    last_seq bigint NOT NULL,
    updated_at timestamp with time zone DEFAULT public.convo_now() NOT NULL
);
CREATE TABLE public.run (
    seq bigint NOT NULL,
    began_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone DEFAULT public.convo_now() NOT NULL,
    ending text NOT NULL COLLATE pg_catalog."C",
    made_by text NOT NULL,
    reason text,
    waits jsonb DEFAULT '{}'::jsonb NOT NULL
);
CREATE TABLE public.schema_version (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT now()
);
ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT api_key_pkey PRIMARY KEY (key_id);
ALTER TABLE ONLY public.conversation_log
    ADD CONSTRAINT conversation_log_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.conversation
    ADD CONSTRAINT conversation_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.job
    ADD CONSTRAINT job_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.memory
    ADD CONSTRAINT memory_pkey PRIMARY KEY (memory_seq);
ALTER TABLE ONLY public.part
    ADD CONSTRAINT part_pkey PRIMARY KEY (seq, name);
ALTER TABLE ONLY public.process
    ADD CONSTRAINT process_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.relationship
    ADD CONSTRAINT relationship_pkey PRIMARY KEY (user_id, bot_id);
ALTER TABLE ONLY public.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (version);
CREATE INDEX conversation_by_bot ON public.conversation USING btree (bot_id, seq);
CREATE INDEX conversation_by_day ON public.conversation USING brin (received_at) WITH (pages_per_range='16', autosummarize='on');
CREATE UNIQUE INDEX conversation_by_id ON public.conversation USING btree (conversation_id);
CREATE INDEX conversation_by_user ON public.conversation USING btree (user_id, seq);
CREATE INDEX job_dead ON public.job USING btree (seq) WHERE (state = 'dead'::text);
CREATE INDEX job_delayed ON public.job USING btree (available_at) WHERE ((state = 'ready'::text) AND delayed);
CREATE INDEX job_due ON public.job USING btree (waits_for, fair_key, available_at, seq) WHERE ((state = 'ready'::text) AND (NOT delayed) AND (crashes < 2));
CREATE INDEX job_leased ON public.job USING btree (seq) WHERE (state = 'leased'::text);
CREATE INDEX job_parked ON public.job USING btree (parked_since) WHERE ((state = 'ready'::text) AND (waits_for <> ''::text));
CREATE INDEX job_suspect ON public.job USING btree (available_at, seq) WHERE ((state = 'ready'::text) AND (NOT delayed) AND (crashes >= 2));
CREATE INDEX job_unreviewed ON public.job USING btree (seq) WHERE ((state = 'dead'::text) AND (reviewed_at IS NULL));
CREATE INDEX ledger_by_day ON public.ledger USING btree (day);
CREATE UNIQUE INDEX memory_by_key ON public.memory USING btree (user_id, key);
CREATE INDEX memory_by_user ON public.memory USING btree (user_id, memory_seq);
CREATE INDEX run_by_job ON public.run USING btree (seq);
