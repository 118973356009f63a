-- kind: expand
-- run: transaction
-- lock: none
-- What calls to language models took and cost (store/costs.py). Older programs do not look here.
--
-- A row is one part's share of one call, and goes with its conversation. Tokens are null where the server did not say how
-- many, nano (billionths of the currency) where the model had no price. It is read by the beginning of its key.
CREATE TABLE part_cost (
    seq           bigint NOT NULL,
    call          bigint NOT NULL,
    part          text COLLATE "C" NOT NULL,
    made_by       text COLLATE "C" NOT NULL,
    tokens_in     integer,
    tokens_out    integer,
    tokens_cached integer,
    nano          bigint,
    at            timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (seq, call, part)
);
-- What all processes have spent on a day (UTC), also on conversations that are gone since.
CREATE TABLE spent_day (
    day  date PRIMARY KEY,
    nano bigint NOT NULL
);
