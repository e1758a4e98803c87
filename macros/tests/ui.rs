//! Mistakes in the macros' use, and what the compiler says of them.

#[test]
fn mistakes_are_told_where_they_are_and_how_to_mend_them() {
    trybuild::TestCases::new().compile_fail("tests/fail/*.rs");
}
