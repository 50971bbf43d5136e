"""Webhooks, and the outbox of their deliveries

Revision: 0004
"""

from alembic import op
import sqlalchemy as sa

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None

_PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    op.create_table('cliptune_webhooks',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('tenant_id', sa.String(length=255), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('description', sa.String(length=255), nullable=False),
    sa.Column('events', sa.JSON(), nullable=False),
    sa.Column('secrets', sa.JSON(), nullable=False),
    sa.Column('failing_since', sa.BigInteger(), nullable=True),
    sa.Column('disabled_at', sa.BigInteger(), nullable=True),
    sa.Column('disabled_reason', sa.Text(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_webhooks'))
    )
    op.create_index('ix_cliptune_webhooks_tenant', 'cliptune_webhooks', ['tenant_id', 'created_at', 'id'], unique=False)
    op.create_table('cliptune_deliveries',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('webhook_id', sa.String(length=36), nullable=False),
    sa.Column('event', sa.String(length=64), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('run_after', sa.BigInteger(), nullable=False),
    sa.Column('owner', sa.String(length=36), nullable=True),
    sa.Column('last_status', sa.Integer(), nullable=True),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('delivered_at', sa.BigInteger(), nullable=True),
    sa.CheckConstraint("state IN ('pending','delivered','failed')", name=op.f('ck_cliptune_deliveries_state')),
    sa.CheckConstraint("state = 'pending' OR owner IS NULL", name=op.f('ck_cliptune_deliveries_owner')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_cliptune_deliveries'))
    )
    op.create_index('ix_cliptune_deliveries_webhook', 'cliptune_deliveries', ['webhook_id', 'created_at', 'id'], unique=False)
    op.create_index('ix_cliptune_deliveries_created', 'cliptune_deliveries', ['created_at'], unique=False)
    op.create_index('ix_cliptune_deliveries_pending', 'cliptune_deliveries', ['webhook_id', 'run_after', 'id'], unique=False, sqlite_where=_PENDING, postgresql_where=_PENDING)


def downgrade() -> None:
    op.drop_table('cliptune_deliveries')
    op.drop_table('cliptune_webhooks')
