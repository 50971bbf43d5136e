"""First tables

Revision: 0001
"""

from alembic import op
import sqlalchemy as sa

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('cliptune_idempotency_keys',
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('route', sa.String(length=255), nullable=False),
    sa.Column('key', sa.String(length=255), nullable=False),
    sa.Column('body_sha256', sa.String(length=64), nullable=False),
    sa.Column('study_id', sa.String(length=36), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('tenant_id', 'route', 'key', name=op.f('pk_cliptune_idempotency_keys'))
    )
    with op.batch_alter_table('cliptune_idempotency_keys', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_cliptune_idempotency_keys_created_at'), ['created_at'], unique=False)

    op.create_table('cliptune_job_events',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('job_id', sa.String(length=36), nullable=False),
    sa.Column('study_id', sa.String(length=36), nullable=False),
    sa.Column('kind', sa.String(length=32), nullable=False),
    sa.Column('fence', sa.BigInteger(), nullable=False),
    sa.Column('payload', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_job_events'))
    )
    with op.batch_alter_table('cliptune_job_events', schema=None) as batch_op:
        batch_op.create_index('ix_cliptune_job_events_study', ['study_id', 'id'], unique=False)

    op.create_table('cliptune_jobs',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('study_id', sa.String(length=36), nullable=False),
    sa.Column('kind', sa.String(length=255), nullable=False),
    sa.Column('payload', sa.JSON(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('priority', sa.Integer(), nullable=False),
    sa.Column('run_after', sa.BigInteger(), nullable=False),
    sa.Column('fence', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('max_attempts', sa.Integer(), nullable=False),
    sa.Column('lost_count', sa.Integer(), nullable=False),
    sa.Column('owner', sa.String(length=36), nullable=True),
    sa.Column('lease_until', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('cancel_requested', sa.Boolean(), nullable=False),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('started_at', sa.BigInteger(), nullable=True),
    sa.Column('finished_at', sa.BigInteger(), nullable=True),
    sa.CheckConstraint("(state = 'running') = (owner IS NOT NULL)", name=op.f('ck_cliptune_jobs_owner')),
    sa.CheckConstraint("state IN ('queued','running','succeeded','failed','cancelled')", name=op.f('ck_cliptune_jobs_state')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_jobs'))
    )
    with op.batch_alter_table('cliptune_jobs', schema=None) as batch_op:
        batch_op.create_index('ix_cliptune_jobs_queued', [sa.text('priority DESC'), 'run_after', 'id'], unique=False, sqlite_where=sa.text("state = 'queued'"), postgresql_where=sa.text("state = 'queued'"))
        batch_op.create_index('ix_cliptune_jobs_running', ['lease_until'], unique=False, sqlite_where=sa.text("state = 'running'"), postgresql_where=sa.text("state = 'running'"))
        batch_op.create_index('uq_cliptune_jobs_live_study', ['study_id'], unique=True, sqlite_where=sa.text("state IN ('queued','running')"), postgresql_where=sa.text("state IN ('queued','running')"))

    op.create_table('cliptune_keys',
    sa.Column('id', sa.String(length=8), nullable=False),
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('label', sa.String(length=255), nullable=False),
    sa.Column('secret_sha256', sa.String(length=64), nullable=False),
    sa.Column('scopes', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('expires_at', sa.BigInteger(), nullable=True),
    sa.Column('last_used_at', sa.BigInteger(), nullable=True),
    sa.Column('revoked_at', sa.BigInteger(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_keys'))
    )
    op.create_table('cliptune_recommendations',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('study_id', sa.String(length=36), nullable=False),
    sa.Column('workload', sa.String(length=255), nullable=False),
    sa.Column('fingerprint', sa.String(length=16), nullable=False),
    sa.Column('verdict', sa.String(length=16), nullable=False),
    sa.Column('method', sa.String(length=255), nullable=False),
    sa.Column('threshold', sa.Float(), nullable=True),
    sa.Column('body', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_recommendations')),
    sa.UniqueConstraint('study_id', name=op.f('uq_cliptune_recommendations_study_id'))
    )
    with op.batch_alter_table('cliptune_recommendations', schema=None) as batch_op:
        batch_op.create_index('ix_cliptune_recommendations_workload', ['tenant_id', 'workload', 'created_at', 'id'], unique=False)
        batch_op.create_index('ix_cliptune_recommendations_fingerprint', ['tenant_id', 'fingerprint', 'created_at', 'id'], unique=False)
    op.create_table('cliptune_studies',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('name', sa.String(length=255), nullable=True),
    sa.Column('workload', sa.String(length=255), nullable=False),
    sa.Column('spec', sa.JSON(), nullable=False),
    sa.Column('spec_sha256', sa.String(length=64), nullable=False),
    sa.Column('fingerprint', sa.String(length=16), nullable=False),
    sa.Column('job_id', sa.String(length=36), nullable=False),
    sa.Column('reference', sa.JSON(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_studies'))
    )
    with op.batch_alter_table('cliptune_studies', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_cliptune_studies_job_id'), ['job_id'], unique=False)
        batch_op.create_index('ix_cliptune_studies_page', ['tenant_id', 'created_at', 'id'], unique=False)
        batch_op.create_index('uq_cliptune_studies_tenant_name', ['tenant_id', 'name'], unique=True, sqlite_where=sa.text('name IS NOT NULL'), postgresql_where=sa.text('name IS NOT NULL'))

    op.create_table('cliptune_workers',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('hostname', sa.String(length=255), nullable=False),
    sa.Column('pid', sa.BigInteger(), nullable=False),
    sa.Column('version', sa.String(length=255), nullable=False),
    sa.Column('device', sa.String(length=255), nullable=False),
    sa.Column('started_at', sa.BigInteger(), nullable=False),
    sa.Column('seen_at', sa.BigInteger(), nullable=False),
    sa.Column('stopped_at', sa.BigInteger(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_workers'))
    )
    with op.batch_alter_table('cliptune_workers', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_cliptune_workers_seen_at'), ['seen_at'], unique=False)

    op.create_table('cliptune_workloads',
    sa.Column('name', sa.String(length=255), nullable=False),
    sa.Column('description', sa.Text(), nullable=False),
    sa.Column('objective', sa.String(length=255), nullable=False),
    sa.Column('parameters', sa.JSON(), nullable=False),
    sa.Column('updated_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_cliptune_workloads'))
    )
    op.create_table('cliptune_trials',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('study_id', sa.String(length=36), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('cohort', sa.Integer(), nullable=False),
    sa.Column('method', sa.String(length=255), nullable=False),
    sa.Column('threshold', sa.Float(), nullable=True),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('lost_count', sa.Integer(), nullable=False),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('finished_at', sa.BigInteger(), nullable=True),
    sa.CheckConstraint("state IN ('waiting','running','complete','pruned','fail')", name=op.f('ck_cliptune_trials_state')),
    sa.ForeignKeyConstraint(['study_id'], ['cliptune_studies.id'], name=op.f('fk_cliptune_trials_study_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_trials')),
    sa.UniqueConstraint('study_id', 'number', name=op.f('uq_cliptune_trials_study_id_number'))
    )
    op.create_table('cliptune_trial_reports',
    sa.Column('trial_id', sa.String(length=36), nullable=False),
    sa.Column('seed', sa.Integer(), nullable=False),
    sa.Column('step', sa.BigInteger(), nullable=False),
    sa.Column('fence', sa.BigInteger(), nullable=False),
    sa.Column('value', sa.Float(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['trial_id'], ['cliptune_trials.id'], name=op.f('fk_cliptune_trial_reports_trial_id')),
    sa.PrimaryKeyConstraint('trial_id', 'seed', 'step', 'fence', name=op.f('pk_cliptune_trial_reports'))
    )
    op.create_table('cliptune_trial_results',
    sa.Column('trial_id', sa.String(length=36), nullable=False),
    sa.Column('fence', sa.BigInteger(), nullable=False),
    sa.Column('lanes', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['trial_id'], ['cliptune_trials.id'], name=op.f('fk_cliptune_trial_results_trial_id')),
    sa.PrimaryKeyConstraint('trial_id', name=op.f('pk_cliptune_trial_results'))
    )


def downgrade() -> None:
    op.drop_table('cliptune_trial_results')
    op.drop_table('cliptune_trial_reports')
    op.drop_table('cliptune_trials')
    op.drop_table('cliptune_workloads')
    with op.batch_alter_table('cliptune_workers', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_cliptune_workers_seen_at'))

    op.drop_table('cliptune_workers')
    with op.batch_alter_table('cliptune_studies', schema=None) as batch_op:
        batch_op.drop_index('uq_cliptune_studies_tenant_name', sqlite_where=sa.text('name IS NOT NULL'), postgresql_where=sa.text('name IS NOT NULL'))
        batch_op.drop_index('ix_cliptune_studies_page')
        batch_op.drop_index(batch_op.f('ix_cliptune_studies_job_id'))

    op.drop_table('cliptune_studies')
    op.drop_table('cliptune_recommendations')
    op.drop_table('cliptune_keys')
    with op.batch_alter_table('cliptune_jobs', schema=None) as batch_op:
        batch_op.drop_index('uq_cliptune_jobs_live_study', sqlite_where=sa.text("state IN ('queued','running')"), postgresql_where=sa.text("state IN ('queued','running')"))
        batch_op.drop_index('ix_cliptune_jobs_running', sqlite_where=sa.text("state = 'running'"), postgresql_where=sa.text("state = 'running'"))

    op.drop_table('cliptune_jobs')
    with op.batch_alter_table('cliptune_job_events', schema=None) as batch_op:
        batch_op.drop_index('ix_cliptune_job_events_study')

    op.drop_table('cliptune_job_events')
    with op.batch_alter_table('cliptune_idempotency_keys', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_cliptune_idempotency_keys_created_at'))

    op.drop_table('cliptune_idempotency_keys')
