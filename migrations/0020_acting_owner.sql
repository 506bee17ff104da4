-- Since PostgreSQL 16, whoever makes a role is a member of it who may grant it and not act as it, which counts as membership where
-- that is asked for. The owner acts as the app where it erases again, behind a restore.
DO $$
BEGIN
    -- Nested: older servers do not know what is asked for.
    IF current_setting('server_version_num')::integer >= 160000 THEN
        IF NOT pg_has_role(current_user, 'hydracore_app', 'SET') THEN
            EXECUTE format('GRANT hydracore_app TO %I WITH SET TRUE', current_user);
        END IF;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    NULL; -- Somebody else's to grant. All but that erasing goes on without.
END
$$;
