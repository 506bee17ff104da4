-- What the last sweep left to an operator, so that `hydracore stuck` can show it without asking the providers.
CREATE TABLE last_sweep (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    ended_at timestamptz NOT NULL,
    result json NOT NULL -- `SweepResult` of workers/sweep_findings.py
);

GRANT SELECT, INSERT, UPDATE ON last_sweep TO hydracore_app;
