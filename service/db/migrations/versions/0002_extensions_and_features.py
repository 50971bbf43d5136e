"""Confirmation rounds, extensions with versions of a recommendation, and what was trained beside each

Revision: 0002
"""

from alembic import op
import sqlalchemy as sa

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

_FEATURES = (
    ('optimizer', sa.String(length=255)),
    ('num_parameters', sa.BigInteger()),
    ('learning_rate', sa.Float()),
    ('batch_size', sa.BigInteger()),
    ('precision', sa.String(length=16)),
    ('model_signature', sa.String(length=16)),
    ('median_norm', sa.Float()),
    ('kappa', sa.Float()),
)


def upgrade() -> None:
    op.add_column('cliptune_studies', sa.Column('extensions', sa.JSON(), server_default='[]', nullable=False))
    op.add_column('cliptune_studies', sa.Column('warm_start', sa.JSON(), nullable=True))
    op.add_column('cliptune_trials', sa.Column('learning_rate_scale', sa.Float(), server_default='1', nullable=False))
    op.add_column('cliptune_trials', sa.Column('seeds', sa.JSON(), nullable=True))
    # As text: Alembic would rebuild SQLite's table for the constraint, and dropping the old one fails on the rows
    # that refer to it.
    op.execute(
        "ALTER TABLE cliptune_trials ADD COLUMN stage VARCHAR(16) DEFAULT 'search' NOT NULL "
        "CONSTRAINT ck_cliptune_trials_stage CHECK (stage IN ('search','confirm'))"
    )
    with op.batch_alter_table('cliptune_recommendations', schema=None) as batch_op:
        batch_op.add_column(sa.Column('version', sa.Integer(), server_default='1', nullable=False))
        for name, kind in _FEATURES:
            batch_op.add_column(sa.Column(name, kind, nullable=True))
        batch_op.drop_constraint('uq_cliptune_recommendations_study_id', type_='unique')
        batch_op.create_unique_constraint(batch_op.f('uq_cliptune_recommendations_study_id_version'), ['study_id', 'version'])
    op.create_index('ix_cliptune_recommendations_similar', 'cliptune_recommendations', ['tenant_id', 'optimizer', 'num_parameters'], unique=False)


def downgrade() -> None:
    # The version before knows one recommendation per study and no confirmation: the newest stays, the trials go.
    op.execute(
        "DELETE FROM cliptune_recommendations WHERE version < "
        "(SELECT max(newer.version) FROM cliptune_recommendations AS newer "
        "WHERE newer.study_id = cliptune_recommendations.study_id)"
    )
    confirming = "SELECT id FROM cliptune_trials WHERE stage = 'confirm'"
    op.execute(f"DELETE FROM cliptune_trial_results WHERE trial_id IN ({confirming})")
    op.execute(f"DELETE FROM cliptune_trial_reports WHERE trial_id IN ({confirming})")
    op.execute("DELETE FROM cliptune_trials WHERE stage = 'confirm'")
    op.drop_index('ix_cliptune_recommendations_similar', table_name='cliptune_recommendations')
    with op.batch_alter_table('cliptune_recommendations', schema=None) as batch_op:
        batch_op.drop_constraint('uq_cliptune_recommendations_study_id_version', type_='unique')
        batch_op.create_unique_constraint(batch_op.f('uq_cliptune_recommendations_study_id'), ['study_id'])
        for name, _ in _FEATURES:
            batch_op.drop_column(name)
        batch_op.drop_column('version')
    for name in ('stage', 'seeds', 'learning_rate_scale'):
        op.execute(f"ALTER TABLE cliptune_trials DROP COLUMN {name}")
    for name in ('warm_start', 'extensions'):
        op.execute(f"ALTER TABLE cliptune_studies DROP COLUMN {name}")
