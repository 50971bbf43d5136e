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


def downgrade() -> None:
    op.drop_column('cliptune_studies', 'device_milliseconds')
    op.drop_column('cliptune_studies', 'key_id')
    op.drop_column('cliptune_workers', 'lane_steps')
    op.drop_column('cliptune_workers', 'slots')
