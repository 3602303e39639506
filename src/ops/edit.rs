//! What people write on snapshots, and declare them. No operation: nothing but the catalog changes, and it is done when it answers.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::model::{
    Cause, Comment, CommentId, Declaration, Declared, Edit, OperationId, Snapshot, SnapshotId,
};
use crate::plan;
use crate::store::{RequestKey, StoreError};

use super::{Asked, Engine, OpsError, Result, observe};

impl Engine {
    /// Changes what people wrote on a snapshot, or lets it be what somebody declares it: READY only if all that it reads is there.
    /// Gives it as it is then.
    pub async fn edit_snapshot(&self, id: SnapshotId, edit: Edit, asked: Asked) -> Result<Snapshot> {
        let Edit::Declare(declaration) = edit else { return self.write_edit(id, edit, asked).await };
        let engine = self.clone();
        // The VM is held to the end, whether or not whoever asked is still there.
        let task = self.0.tasks.spawn(async move { engine.declare(id, declaration, asked).await });
        task.await.map_err(|_| OpsError::Draining)?
    }

    async fn declare(&self, id: SnapshotId, declaration: Declaration, asked: Asked) -> Result<Snapshot> {
        let gone = || OpsError::NoSuchSnapshot(id.to_string());
        let vm = self.0.store.snapshot(id).await?.ok_or_else(gone)?.vm;
        // Nothing changes what it reads, or relies on its state, until its state is written.
        let _permit = self.enter(BTreeSet::from([vm]), OperationId::new()).await?;
        let is_ready = declaration.what == Declared::Ready;
        let edit = Edit::Declare(declaration);
        if is_ready {
            let world = observe::observe(self, vm, None).await?;
            let snapshot = world.tree.snapshot(id).ok_or_else(gone)?;
            // Who may not declare it learns that, and not what else is wrong; and what is so needs no look.
            if snapshot.edited(edit.clone()).map_err(StoreError::Edit)? != *snapshot {
                plan::declare_ready(&world, snapshot)?;
            }
        }
        self.write_edit(id, edit, asked).await
    }

    async fn write_edit(&self, id: SnapshotId, edit: Edit, asked: Asked) -> Result<Snapshot> {
        let cause = Cause { operation: None, actor: asked.by, at: Timestamp::now() };
        let edited = self.0.store.edit(id, edit, asked.key, cause).await?;
        self.settle_manifests();
        edited.ok_or_else(|| OpsError::NoSuchSnapshot(id.to_string()))
    }

    /// The snapshot that the same request has changed before, if it was made before.
    pub async fn edited_before(&self, key: Option<&RequestKey>) -> Result<Option<Snapshot>> {
        let Some(key) = key else { return Ok(None) };
        Ok(self.0.store.edited_before(key.clone()).await?)
    }

    /// Writes a comment under a snapshot.
    pub async fn add_comment(&self, snapshot: SnapshotId, text: String, asked: Asked) -> Result<Comment> {
        let id = CommentId::new();
        let comment = Comment { id, snapshot, author: asked.by, text, created_at: Timestamp::now() };
        let written = self.0.store.add_comment(comment, asked.key).await?;
        self.settle_manifests();
        written.ok_or_else(|| OpsError::NoSuchSnapshot(snapshot.to_string()))
    }

    /// The comments under a snapshot, oldest first: at most `limit` behind `after`. With the number there are.
    pub async fn comments(
        &self,
        snapshot: SnapshotId,
        after: Option<CommentId>,
        limit: u32,
    ) -> Result<(Vec<Comment>, u64)> {
        Ok(self.0.store.comments(snapshot, after, limit).await?)
    }

    /// Deletes a comment.
    pub async fn delete_comment(&self, id: CommentId, asked: Asked) -> Result<()> {
        let cause = Cause { operation: None, actor: asked.by, at: Timestamp::now() };
        let was_there = self.0.store.delete_comment(id, asked.key, cause).await?;
        self.settle_manifests();
        if was_there { Ok(()) } else { Err(OpsError::NoSuchComment(id.to_string())) }
    }
}
