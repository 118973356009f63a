"""The statements that make the roles and databases of the embedded PostgreSQL; ``access`` runs them, with psql."""

from __future__ import annotations

USER = "convo"
"""The role that convo works as."""
ADMIN = "convo_admin"
"""The superuser."""
UPGRADER = "convo_upgrade"
"""A superuser that exists only while a folder of an earlier version is upgraded."""
DATABASE_NAME = "convo"
NEW = "convo_new"
"""The database that a restore fills; it then takes the place of convo's own."""
OLD = "convo_old"
"""What was convo's own database, for the moment until it is dropped."""

# The role has no right of the whole server, and there is nothing left of a restore that was cut short.
IS_SETTLED = f"""
SELECT NOT EXISTS (
           SELECT FROM pg_roles WHERE rolname = current_user
           AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)
       )
   AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = current_user::regrole)
   AND NOT EXISTS (SELECT FROM pg_database WHERE datname IN ('{NEW}', '{OLD}'))
   AND NOT EXISTS (SELECT FROM pg_database WHERE datdba = current_user::regrole)
   AND EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public' AND nspowner = current_user::regrole);
"""

MAKE_UPGRADER = f"""
DROP ROLE IF EXISTS {UPGRADER};
CREATE ROLE {UPGRADER} SUPERUSER LOGIN;
"""

# No role can rename itself, and the first superuser of a server cannot become an ordinary role. So it gets another
# name, and a new role of its old name gets what it owns. All of it is one transaction, and no row is touched.
UPGRADE = f"""
BEGIN;
ALTER ROLE {USER} RENAME TO {ADMIN};
CREATE ROLE {USER};
DO $convo$
DECLARE statement text;
BEGIN
    FOR statement IN
        WITH mine AS (
            SELECT oid, nspname FROM pg_namespace
            WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
        )
        SELECT format('ALTER %s %s OWNER TO {USER}', kind, name)
        FROM (
            SELECT 1 AS step, 'SCHEMA' AS kind, quote_ident(nspname) AS name, 'pg_namespace'::regclass AS class, oid
            FROM mine
            UNION ALL
            SELECT 2, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                                   WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
                   oid::regclass::text, 'pg_class'::regclass, oid
            FROM pg_class
            WHERE relnamespace IN (SELECT oid FROM mine) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
              AND relowner = '{ADMIN}'::regrole
            UNION ALL
            SELECT 3, 'ROUTINE', oid::regprocedure::text, 'pg_proc'::regclass, oid
            FROM pg_proc
            WHERE pronamespace IN (SELECT oid FROM mine) AND proowner = '{ADMIN}'::regrole
            UNION ALL
            SELECT 4, CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, oid::regtype::text, 'pg_type'::regclass, oid
            FROM pg_type
            WHERE typnamespace IN (SELECT oid FROM mine) AND typowner = '{ADMIN}'::regrole
              AND (typtype IN ('d', 'e', 'r')
                   OR (typtype = 'c' AND (SELECT relkind FROM pg_class c WHERE c.oid = typrelid) = 'c'))
        ) AS ours
        WHERE NOT EXISTS (
            -- A partition belongs to its table as a sequence does to its column, but has an owner of its own.
            SELECT FROM pg_depend d
            WHERE d.classid = ours.class AND d.objid = ours.oid AND d.objsubid = 0
              AND (d.deptype IN ('e', 'i') OR d.deptype = 'a' AND d.refobjsubid > 0)
              AND d.refclassid IN ('pg_class'::regclass, 'pg_extension'::regclass)
        )
        ORDER BY step
    LOOP
        EXECUTE statement;
    END LOOP;
END
$convo$;
COMMIT;
"""

DROP_OTHERS = f"""
DROP DATABASE IF EXISTS {NEW};
DROP DATABASE IF EXISTS {OLD};
"""

MAKE_NEW = f"""
CREATE DATABASE {NEW} TEMPLATE template0;
"""

# One query of two statements is one transaction.
SWAP = rf"""
ALTER DATABASE {DATABASE_NAME} RENAME TO {OLD}\; ALTER DATABASE {NEW} RENAME TO {DATABASE_NAME};
"""

OWN_SCHEMA = f"""
ALTER SCHEMA public OWNER TO {USER};
"""


def make_role(password: str) -> str:
    """Return the statements that make convo's role and its database where they are missing, and bound the role."""
    return rf"""
DROP ROLE IF EXISTS {UPGRADER};
{DROP_OTHERS}
SELECT 'CREATE ROLE {USER}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{USER}') \gexec
SET password_encryption = 'scram-sha-256';
ALTER ROLE {USER} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '{password}';
SELECT format('REVOKE %s FROM {USER} CASCADE', roleid::regrole)
FROM pg_auth_members WHERE member = '{USER}'::regrole \gexec
SELECT 'CREATE DATABASE {DATABASE_NAME} TEMPLATE template0'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE_NAME}') \gexec
SELECT format('ALTER DATABASE %I OWNER TO {ADMIN}', datname)
FROM pg_database WHERE datdba = '{USER}'::regrole \gexec
"""
