//! What people write on snapshots, and the comments under them.

use rusqlite::{OptionalExtension, Transaction, params};

use super::request::{self, Answer, RequestKey};
use super::{Prepared, Result, Store, event, from_json, snapshot, to_json};
use crate::model::event::{Cause, of_comment, of_edit};
use crate::model::{Comment, CommentId, Edit, Snapshot, SnapshotId};

impl Store {
    /// Changes what people wrote on a snapshot, by the rules of `model`. Gives it as it is then; None if there is none.
    /// The same request again changes nothing.
    pub async fn edit(
        &self,
        id: SnapshotId,
        edit: Edit,
        key: Option<RequestKey>,
        cause: Cause,
    ) -> Result<Option<Snapshot>> {
        self.transact(move |transaction| {
            if request::find(transaction, key.as_ref())?.is_some() {
                return snapshot::read(transaction, id);
            }
            let Some(before) = snapshot::read(transaction, id)? else { return Ok(None) };
            let snapshot = before.edited(edit.clone())?;
            event::insert_all(transaction, of_edit(&edit, &before, &snapshot, &cause))?;
            snapshot::write(transaction, &snapshot)?;
            request::remember(transaction, key.as_ref(), Answer::Edit(id), cause.at.as_millisecond())?;
            Ok(Some(snapshot))
        })
        .await
    }

    /// The snapshot that the same request has changed before, as it is now. Asked first: the name that the request gives
    /// may be another by now.
    pub async fn edited_before(&self, key: RequestKey) -> Result<Option<Snapshot>> {
        self.transact(move |transaction| match request::find(transaction, Some(&key))? {
            Some(Answer::Edit(id)) => snapshot::read(transaction, id),
            Some(_) | None => Ok(None),
        })
        .await
    }

    /// Writes a comment. None if there is no such snapshot. The same request again gives the first comment.
    pub async fn add_comment(&self, comment: Comment, key: Option<RequestKey>) -> Result<Option<Comment>> {
        self.transact(move |transaction| {
            if let Some(Answer::Comment(before)) = request::find(transaction, key.as_ref())? {
                return read_comment(transaction, before);
            }
            let Some(snapshot) = count(transaction, comment.snapshot, 1)? else { return Ok(None) };
            let cause = Cause { operation: None, actor: comment.author.clone(), at: comment.created_at };
            event::insert(transaction, &of_comment(&comment, true, &snapshot, &cause))?;
            transaction.run(
                "INSERT INTO comment (id, snapshot, body) VALUES (?, ?, ?)",
                params![comment.id.to_string(), comment.snapshot.to_string(), to_json(&comment, "comment")?],
            )?;
            let answer = Answer::Comment(comment.id);
            request::remember(transaction, key.as_ref(), answer, comment.created_at.as_millisecond())?;
            Ok(Some(comment))
        })
        .await
    }

    /// The comments under a snapshot, oldest first: at most `limit` behind `after`. With the number there are.
    pub async fn comments(
        &self,
        snapshot: SnapshotId,
        after: Option<CommentId>,
        limit: u32,
    ) -> Result<(Vec<Comment>, u64)> {
        self.transact(move |transaction| {
            let snapshot = snapshot.to_string();
            let total: i64 =
                transaction
                    .row("SELECT count(*) FROM comment WHERE snapshot = ?", [&snapshot], |row| row.get(0))?;
            let mut statement = transaction.prepare_cached(
                "SELECT body FROM comment WHERE snapshot = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            )?;
            let after = after.map(|id| id.to_string()).unwrap_or_default();
            let rows = statement.query_map(params![snapshot, after, limit], |row| row.get::<_, String>(0))?;
            let comments = rows.map(|row| from_json(&row?, "comment")).collect::<Result<_>>()?;
            Ok((comments, total.unsigned_abs()))
        })
        .await
    }

    /// Deletes a comment. Whether it was there, or the same request has deleted it before.
    pub async fn delete_comment(&self, id: CommentId, key: Option<RequestKey>, cause: Cause) -> Result<bool> {
        self.transact(move |transaction| {
            if request::find(transaction, key.as_ref())?.is_some() {
                return Ok(true);
            }
            let Some(comment) = read_comment(transaction, id)? else { return Ok(false) };
            transaction.run("DELETE FROM comment WHERE id = ?", [id.to_string()])?;
            if let Some(snapshot) = count(transaction, comment.snapshot, -1)? {
                event::insert(transaction, &of_comment(&comment, false, &snapshot, &cause))?;
            }
            request::remember(transaction, key.as_ref(), Answer::Uncomment(id), cause.at.as_millisecond())?;
            Ok(true)
        })
        .await
    }
}

/// Counts a comment in or out. Gives the snapshot, if it is there.
fn count(transaction: &Transaction<'_>, snapshot: SnapshotId, by: i32) -> Result<Option<Snapshot>> {
    let Some(mut snapshot) = snapshot::read(transaction, snapshot)? else { return Ok(None) };
    snapshot.comments = snapshot.comments.saturating_add_signed(by);
    snapshot.generation += 1;
    snapshot::write(transaction, &snapshot)?;
    Ok(Some(snapshot))
}

/// All comments under a snapshot, oldest first.
pub(super) fn read_comments(transaction: &Transaction<'_>, snapshot: SnapshotId) -> Result<Vec<Comment>> {
    let sql = "SELECT body FROM comment WHERE snapshot = ? ORDER BY id";
    let mut statement = transaction.prepare_cached(sql)?;
    let rows = statement.query_map([snapshot.to_string()], |row| row.get::<_, String>(0))?;
    rows.map(|row| from_json(&row?, "comment")).collect()
}

fn read_comment(transaction: &Transaction<'_>, id: CommentId) -> Result<Option<Comment>> {
    let sql = "SELECT body FROM comment WHERE id = ?";
    let body: Option<String> = transaction.row(sql, [id.to_string()], |row| row.get(0)).optional()?;
    body.map(|body| from_json(&body, "comment")).transpose()
}
