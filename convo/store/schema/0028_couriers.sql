-- kind: expand
-- run: transaction
-- lock: none
-- Couriers that bring events to one place for the whole installation (store/couriers.py): how far the place has confirmed
-- them. Older programs do not look here.
CREATE TABLE courier (
    name         text COLLATE "C" PRIMARY KEY,
    -- all events up to here are confirmed, or of no interest to it
    cursor       bigint NOT NULL DEFAULT 0,
    -- the process that delivers: every write of that process names the token
    lease_token  bigint NOT NULL DEFAULT 0,
    leased_by    text COLLATE "C",
    leased_until timestamptz
);
