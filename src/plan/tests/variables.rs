//! UEFI variables: kept, brought back, or told that they are not.

use super::*;
use crate::model::step::ImageRef;

/// A VM with a file of UEFI variables.
fn uefi(format: Format) -> Paper {
    let mut paper = Paper::new();
    let path = PathBuf::from("/nvram/web.fd");
    paper.world.variables.insert(path.clone(), 512 << 10);
    paper.world.vm.variables = Some(ImageRef { path, format });
    paper
}

#[test]
fn variables_are_kept_and_brought_back() {
    let mut paper = uefi(Format::Raw);
    let plan = paper.plan_create(&named("one")).unwrap();
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!(
        outline(&plan),
        "reserve overlay overlay copy-variables flush freeze switch! thaw record",
        "before the freeze, so that it is no longer for it"
    );
    paper.carry_out(&plan);
    assert_eq!(paper.snapshot("one").variables.unwrap().bytes, 512 << 10);
    let vda = "vda".parse().unwrap();
    let volume = CreateSnapshot { kind: SnapshotKind::Volume, disks: [vda].into(), ..named("two") };
    let plan = paper.plan_create(&volume).unwrap();
    paper.carry_out(&plan);
    assert_eq!(paper.snapshot("two").variables, None, "they are not of the volume");

    let plan = paper.plan_revert("one", RunStateAfter::AsItWas).unwrap();
    assert_eq!(
        outline(&plan),
        "reverting overlay overlay stop copy-variables restore-variables point start! record remove"
    );
    let kept = paper.snapshot("one").variables.unwrap().path;
    let is_removed = |plan: &Plan, path: &Path| {
        plan.steps.iter().any(|step| match step {
            Step::RemoveImages { images } => images.iter().any(|image| image.path == path),
            _ => false,
        })
    };
    assert!(!is_removed(&plan, &kept));
    assert!(is_removed(&paper.plan_delete("one").unwrap(), &kept));
    // The snapshot has them, the VM does not boot by UEFI any more: there is nothing to bring them back to.
    let file = paper.world.vm.variables.take();
    assert!(!outline(&paper.plan_revert("one", RunStateAfter::AsItWas).unwrap()).contains("variables"));
    paper.world.vm.variables = file;
    paper.world.variables.remove(&kept);
    check(
        paper.plan_revert("one", RunStateAfter::AsItWas),
        Err(&format!("there is no image {}", kept.display())),
    );
}

#[test]
fn variables_that_cannot_be_copied_are_told() {
    let told = |paper: &mut Paper| paper.plan_create(&named("one")).unwrap().warnings;
    let mut live = uefi(Format::Qcow2);
    assert_eq!(
        told(&mut live),
        [
            "not in the snapshot: the UEFI variables (/nvram/web.fd): while the VM is live, qcow2 is not copied"
        ]
    );
    live.world.vm.run_state = RunState::Off;
    assert_eq!(told(&mut live), Vec::<String>::new());
    let mut absent = uefi(Format::Raw);
    absent.world.variables.clear();
    assert_eq!(
        told(&mut absent),
        ["not in the snapshot: the UEFI variables (/nvram/web.fd): there is no such file yet"]
    );
    absent.create("one");
    let plan = absent.plan_revert("one", RunStateAfter::AsItWas).unwrap();
    assert_eq!(plan.warnings, ["not in the snapshot, it stays as it is: the UEFI variables (/nvram/web.fd)"]);
}
