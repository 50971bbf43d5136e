"""Lanes that external training processes lease, and what they report

Revision: 0003
"""

from alembic import op
import sqlalchemy as sa

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

_LEASED = sa.text("state = 'leased'")


def upgrade() -> None:
    op.create_table('cliptune_lanes',
    sa.Column('trial_id', sa.String(length=36), nullable=False),
    sa.Column('seed', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('study_id', sa.String(length=36), nullable=False),
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('position', sa.BigInteger(), nullable=False),
    sa.Column('is_probe', sa.Boolean(), nullable=False),
    sa.Column('num_steps', sa.BigInteger(), nullable=True),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('run_after', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('fence', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('token_sha256', sa.String(length=64), nullable=True),
    sa.Column('client_id', sa.String(length=255), nullable=True),
    sa.Column('lease_until', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('lost_count', sa.Integer(), nullable=False),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('last_cause', sa.String(length=16), nullable=True),
    sa.Column('step', sa.BigInteger(), nullable=True),
    sa.Column('value', sa.Float(), nullable=True),
    sa.Column('initial', sa.Float(), nullable=True),
    sa.Column('rungs', sa.JSON(), server_default='{}', nullable=False),
    sa.Column('num_reports', sa.Integer(), server_default='0', nullable=False),
    sa.Column('record', sa.JSON(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('leased_at', sa.BigInteger(), nullable=True),
    sa.Column('finished_at', sa.BigInteger(), nullable=True),
    sa.CheckConstraint("state IN ('waiting','leased','complete','pruned','diverged','fail','closed')", name=op.f('ck_cliptune_lanes_state')),
    sa.CheckConstraint("state <> 'leased' OR (client_id IS NOT NULL AND token_sha256 IS NOT NULL)", name=op.f('ck_cliptune_lanes_holder')),
    sa.ForeignKeyConstraint(['study_id'], ['cliptune_studies.id'], name=op.f('fk_cliptune_lanes_study_id')),
    sa.PrimaryKeyConstraint('trial_id', 'seed', name=op.f('pk_cliptune_lanes'))
    )
    op.create_index('ix_cliptune_lanes_ask', 'cliptune_lanes', ['study_id', 'state', 'position'], unique=False)
    op.create_index('ix_cliptune_lanes_leased', 'cliptune_lanes', ['lease_until'], unique=False, sqlite_where=_LEASED, postgresql_where=_LEASED)
    op.create_index('uq_cliptune_lanes_client', 'cliptune_lanes', ['study_id', 'client_id'], unique=True, sqlite_where=_LEASED, postgresql_where=_LEASED)
    op.create_table('cliptune_lane_reports',
    sa.Column('trial_id', sa.String(length=36), nullable=False),
    sa.Column('seed', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('step', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('fence', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('has_value', sa.Boolean(), nullable=False),
    sa.Column('value', sa.Float(), nullable=True),
    sa.Column('norms', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['trial_id', 'seed'], ['cliptune_lanes.trial_id', 'cliptune_lanes.seed'], name=op.f('fk_cliptune_lane_reports_trial_id')),
    sa.PrimaryKeyConstraint('trial_id', 'seed', 'step', 'fence', name=op.f('pk_cliptune_lane_reports'))
    )


def downgrade() -> None:
    op.drop_table('cliptune_lane_reports')
    op.drop_table('cliptune_lanes')
