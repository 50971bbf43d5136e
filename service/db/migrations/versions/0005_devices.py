"""What workers' devices do, and how long they worked for which study

Revision: 0005
"""

from alembic import op
import sqlalchemy as sa

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('cliptune_workers', sa.Column('slots', sa.JSON(), server_default='[]', nullable=False))
    op.add_column('cliptune_workers', sa.Column('lane_steps', sa.BigInteger(), server_default='0', nullable=False))
    op.add_column('cliptune_studies', sa.Column('key_id', sa.String(length=255), nullable=True))
    op.add_column('cliptune_studies', sa.Column('device_milliseconds', sa.BigInteger(), server_default='0', nullable=False))
    op.create_index('ix_cliptune_studies_devices', 'cliptune_studies', ['tenant_id', 'key_id', 'device_milliseconds'], unique=False)
    op.create_index('ix_cliptune_jobs_ready', 'cliptune_jobs', ['kind', 'run_after'], unique=False, sqlite_where=sa.text("state = 'queued'"), postgresql_where=sa.text("state = 'queued'"))


def downgrade() -> None:
    op.drop_index('ix_cliptune_jobs_ready', table_name='cliptune_jobs', sqlite_where=sa.text("state = 'queued'"), postgresql_where=sa.text("state = 'queued'"))
    op.drop_index('ix_cliptune_studies_devices', table_name='cliptune_studies')
    op.drop_column('cliptune_studies', 'device_milliseconds')
    op.drop_column('cliptune_studies', 'key_id')
    op.drop_column('cliptune_workers', 'lane_steps')
    op.drop_column('cliptune_workers', 'slots')
